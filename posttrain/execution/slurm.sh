#!/bin/bash
%{options}
# Of posttrain. %{stage}: %{folder}
soon=%{soon}
rm -f "$soon.$SLURM_JOB_ID"
near() { touch "$soon.$SLURM_JOB_ID"; [ %{training} = 1 ] || kill "$child" 2>/dev/null; }
trap near USR1
host=$(scontrol show node "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" -o | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export POSTTRAIN_SOON="$soon.$SLURM_JOB_ID"
%{command} &
child=$!
while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal ends the first wait
wait "$child"
code=$?
# Not done, and the limit is near: what was made is kept, and the job goes back into the queue.
if [ -e "$soon.$SLURM_JOB_ID" ] && [ ! -e %{marker} ]; then
    rm -f "$soon.$SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
