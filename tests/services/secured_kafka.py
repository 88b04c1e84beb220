"""A real Kafka with TLS, passwords, client certificates and ACLs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from services.certificates import Authority
from services.kafka import ANSWER_DEADLINE_S, KafkaBroker, free_ports

_ANY: Final = AclBindingFilter(
    ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
)
_SCRAM_LOGIN: Final = "org.apache.kafka.common.security.scram.ScramLoginModule"


class SecuredKafka(KafkaBroker):
    """A broker called `localhost` at two ports: SASL_SSL (SCRAM-SHA-512), and SSL with client certificates.

    The port of every `KafkaBroker` is the test's own way in: whoever comes there may do anything.
    """

    def __init__(self, folder: Path, authority: Authority) -> None:
        ports = free_ports(4)
        self.sasl_ssl, self.ssl = (f"localhost:{port}" for port in ports[2:])
        certificate = authority.issue("broker", "localhost")
        open_, secured = f"PLAINTEXT://127.0.0.1:{ports[0]}", f"SASL_SSL://{self.sasl_ssl},SSL://{self.ssl}"
        super().__init__(
            folder,
            ports=ports[:2],
            properties={
                "listeners": f"{open_},{secured},CONTROLLER://127.0.0.1:{ports[1]}",
                "advertised.listeners": f"{open_},{secured}",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{_SCRAM_LOGIN} required;",
                "listener.name.ssl.ssl.client.auth": "required",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(certificate.both),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(authority.ca),
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
            },
        )

    def set_password(self, user: str, password: str) -> None:
        """Let this user in with this password."""
        secret = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(user, secret, password.encode())
        for future in self.admin.alter_user_scram_credentials([change]).values():
            future.result(ANSWER_DEADLINE_S)

    def acls(self) -> set[AclBinding]:
        """Give all ACLs that there are."""
        return set(self.admin.describe_acls(_ANY).result(ANSWER_DEADLINE_S))

    def set_acls(self, acls: Iterable[AclBinding]) -> None:
        """Let these be all ACLs that there are."""
        for gone in self.admin.delete_acls([_ANY]).values():
            gone.result(ANSWER_DEADLINE_S)
        if wanted := list(acls):
            for made in self.admin.create_acls(wanted).values():
                made.result(ANSWER_DEADLINE_S)


def allow(principal: str, operation: str, kind: str, name: str) -> AclBinding:
    """Give the ACL that lets somebody do this with the topic or group (`kind`) of this name."""
    return AclBinding(
        ResourceType[kind.upper()], name, ResourcePatternType.LITERAL, principal, "*",
        AclOperation[_operation(operation)], AclPermissionType.ALLOW,
    )  # fmt: skip


def _operation(name: str) -> str:
    return {"DescribeConfigs": "DESCRIBE_CONFIGS", "IdempotentWrite": "IDEMPOTENT_WRITE"}.get(name, name.upper())
