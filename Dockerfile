# zonerd with its supervisord: `docker build --tag zonerd .`; docs/deploy.md says how it is run.
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
WORKDIR /src
# the wheels of others change seldom: setup.cfg alone decides them
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY zonerd/__init__.py zonerd/
RUN pip wheel --no-cache-dir --quiet --wheel-dir /wheels . && rm /wheels/zonerd-*
COPY zonerd zonerd
# the versions are those of /wheels
# hadolint ignore=DL3013
RUN pip wheel --no-cache-dir --quiet --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/zonerd \
    && pip --python /opt/zonerd/bin/python install --no-cache-dir --quiet --no-index --find-links /wheels zonerd \
    && find /opt/zonerd -depth -type d \( -name tests -o -name sqlite_extra_binaries \) -exec rm -r {} +

FROM python:${PYTHON}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="zonerd" \
      org.opencontainers.image.description="User-activity events: Kafka to an exact history and an always-fresh summary" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.documentation="docs/deploy.md"
RUN groupadd --gid 10001 zonerd \
    && useradd --uid 10001 --gid zonerd --home-dir /var/lib/zonerd --no-create-home --shell /usr/sbin/nologin zonerd \
    && install --directory --owner zonerd --group zonerd --mode 0700 /var/lib/zonerd /run/zonerd \
    && ln -s /etc/zonerd/supervisord.conf /etc/supervisord.conf
COPY --from=build /opt/zonerd /opt/zonerd
COPY etc/container/zonerd.toml etc/container/supervisord.conf /etc/zonerd/
ENV PATH=/opt/zonerd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/zonerd
USER 10001:10001
VOLUME ["/var/lib/zonerd"]
EXPOSE 19300-19302 19310
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["zonerd", "health"]
CMD ["zonerd", "up"]
