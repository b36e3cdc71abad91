#!/usr/bin/env bash
# Starts Cortex nodes and SMG in front of them on this machine. Ctrl-C ends all of them.
#
#   deploy/cluster.sh [FLAGS OF `cortex run`]
#
# Clients use http://127.0.0.1:39290/v1. The nodes listen on 39291, 39292 and so on. These variables change that:
#   MODEL    the model that every node serves (smollm2:135m)
#   NODES    the number of nodes (2)
#   PORT     SMG's port; node N listens on PORT + N, and SMG's own metrics are on PORT + 100 (39290)
#   CLUSTER  the folder with a $CORTEX_HOME for each node (.cluster)
#   KEYS     a keys file that all nodes share; without it they demand no keys
#   CORTEX, SMG  the commands
set -eu
MODEL=${MODEL:-smollm2:135m} NODES=${NODES:-2} PORT=${PORT:-39290} CORTEX=${CORTEX:-cortex} SMG=${SMG:-smg}
CLUSTER=$(realpath --canonicalize-missing "${CLUSTER:-.cluster}")
flags=$(sed 's/#.*//' "$(dirname "$0")/smg.flags")
keys=()
if [ -n "${KEYS:-}" ]; then keys=(--auth --keys-file "$(realpath "$KEYS")"); fi
# The nodes share the cores of this machine.
threads=$(($(nproc) / NODES > 0 ? $(nproc) / NODES : 1))

node() {  # node N COMMAND...: runs `cortex` for node N
    CORTEX_HOME=$CLUSTER/node$1 "$CORTEX" "${@:2}"
}

stop() {
    trap - EXIT INT TERM
    # All at once: running answers may end within the grace period.
    if [ -n "$router" ]; then kill "$router" 2>/dev/null || true; fi
    for number in $(seq "$NODES"); do node "$number" stop >/dev/null 2>&1 & done
    wait
}

router=
trap 'stop' EXIT
trap 'exit 0' INT TERM

# `run -d` returns when the model is ready, or fails with the reason. SMG waits for a node that is not up at its start.
urls=()
for number in $(seq "$NODES"); do
    mkdir -p "$CLUSTER/node$number"
    node "$number" run -d "$MODEL" --port $((PORT + number)) --threads "$threads" --drain-delay 5 "${keys[@]}" "$@"
    urls+=("http://127.0.0.1:$((PORT + number))")
done

# SMG's own routes, which add and remove nodes, are closed to clients: nobody knows this key.
operator=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
# shellcheck disable=SC2086 - the flags are words
"$SMG" launch $flags --host 127.0.0.1 --port "$PORT" --prometheus-host 127.0.0.1 --prometheus-port $((PORT + 100)) \
    --log-level warn --control-plane-api-keys "operator:operator:admin:$operator" --worker-urls "${urls[@]}" &
router=$!
echo "==> http://127.0.0.1:$PORT/v1 serves $MODEL on $NODES nodes. Ctrl-C ends all."
wait "$router"
