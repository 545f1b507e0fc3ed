#!/bin/sh
# What stands for a trainer: each step makes a new state of the one before. Slow where PAUSE_S says so.
# It goes on from the newest checkpoint that it finds, by itself: sh train.sh STEPS
set -eu

mkdir -p checkpoints
step=$(ls checkpoints | sed -n 's/^step-//p' | sort -n | tail -n 1)
step=${step:-0}
state=$([ "$step" -eq 0 ] && echo start || cat "checkpoints/step-$step")
echo "from step $step"
while [ "$step" -lt "$1" ]; do
    step=$((step + 1))
    sleep "${PAUSE_S:-0}"
    state=$(echo "$state $step" | sha256sum | cut -d " " -f 1)
    echo "$state" >checkpoints/partial
    mv checkpoints/partial "checkpoints/step-$step" # whole or not at all
    echo "step $step: loss 0.$((1000 - step))"
done
echo "$state" >model.txt
