#!/bin/sh
# As the real image's: root becomes valkey; without a configuration protected mode would refuse everybody but this container.
set -eu
if [ "$(id -u)" = 0 ]; then
    chown valkey /data
    exec setpriv --reuid=valkey --regid=valkey --clear-groups -- "$0" "$@"
fi
exec "$@" --protected-mode no
