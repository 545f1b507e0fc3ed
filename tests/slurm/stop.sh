#!/usr/bin/env bash
# Stop what start.sh started in ROOT, by its pid files, and take its links out of /etc/slurm.
root=$1
for file in "$root"/slurmd.pid "$root"/slurmctld.pid "$root"/munged.pid; do
    [ -r "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid"
    tail --pid="$pid" -f /dev/null
done
for link in /etc/slurm/*.conf; do
    case $(readlink "$link") in "$root"/*) rm "$link" ;; esac
done
true
