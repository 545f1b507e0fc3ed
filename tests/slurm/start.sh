#!/usr/bin/env bash
# Start a SLURM of one node as root, without systemd. Its state lies in ROOT; /etc/slurm/slurm.conf becomes a link to it,
# since Snakemake's plugin takes SLURM_CONF out of the environment.
# Usage: start.sh ROOT [LINE of slurm.conf]...
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$1
shift
mkdir -p "$root"/{ctld,d}
for number in {0..7}; do
    mknod "$root/nvidia$number" c 1 3
done
echo "Name=gpu File=$root/nvidia[0-7]" >"$root/gres.conf"

# munge on the distribution's socket; its key was written when the package was installed.
install -d -o munge -g munge -m 0755 /run/munge
install -d -o munge -g munge -m 0700 /var/log/munge /var/lib/munge
if ! munge -n >/dev/null 2>&1; then
    setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged
    ln -s /run/munge/munged.pid "$root/munged.pid"
    until munge -n >/dev/null 2>&1; do sleep 0.1; done
fi

read -r node memory < <(slurmd -C | sed -n 's/^NodeName=\(\S*\) .*RealMemory=\(\S*\).*/\1 \2/p')
more=$(printf '%s\\n' "$@")
sed "s|@ROOT@|$root|g; s|@NODE@|$node|g; s|@MEMORY@|$memory|g; s|@MORE@|$more|" "$here/slurm.conf.in" >"$root/slurm.conf"

if [ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ]; then
    echo "/etc/slurm/slurm.conf is a real file; it is not replaced" >&2
    exit 1
fi
mkdir -p /etc/slurm
for file in "$root"/*.conf; do
    ln -sfn "$file" /etc/slurm/
done
slurmctld
# The node has a /dev/shm of its own, as it would have on another machine.
unshare --mount sh -c 'umount --recursive --lazy /dev/shm && mount -t tmpfs -o mode=1777 shm /dev/shm && exec slurmd'
for _ in $(seq 100); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q '^idle' && exit 0
    sleep 0.1
done
echo "the node is not idle within 10 s: $(sinfo 2>&1)" >&2
tail -n 20 "$root"/slurm*.log >&2
exit 1
