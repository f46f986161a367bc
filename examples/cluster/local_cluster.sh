#!/usr/bin/env bash
# One job on a Ray cluster of two nodes, both of them on this machine, with a CPU each. In the checkout's root:
#
#     pip install '.[ray,parquet]'
#     examples/cluster/local_cluster.sh [OUTPUT_DIR]
#
# It starts the nodes, has them label the example pictures with the embedded model, shows the rows and stops the nodes:
# by their process numbers, since `ray stop` would end every Ray process of the machine. What it needs for that lies in
# a temporary folder, and is removed; so are the results unless OUTPUT_DIR is given. With the same OUTPUT_DIR again, what
# is done isn't done twice. PORT=6379 chooses the head node's port; otherwise it is one that is free. Linux.
set -euo pipefail
cd "$(dirname "$0")/../.."

for program in ray clipcls; do
    if ! command -v "$program" > /dev/null; then
        echo "$0: the command $program isn't there: pip install '.[ray,parquet]', and activate its environment" >&2
        exit 2
    fi
done

scratch=$(mktemp -d)
output=${1:-$scratch/labels}
nodes=()

stop_nodes() {
    trap - EXIT INT TERM
    [ ${#nodes[@]} = 0 ] || kill "${nodes[@]}" 2> /dev/null || true
    wait || true
    # what a node has started ends a moment later; it is known by the session
    for node in "${nodes[@]}"; do
        for ((tenths = 0; tenths < 50; tenths++)); do
            pgrep -s "$node" > /dev/null || break
            sleep 0.1
        done
        pkill -KILL -s "$node" || true
    done
    rm -rf "$scratch"
}
trap stop_nodes EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# a node that is stopped gives its work up at once, not within half a minute
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
# Nodes and jobs of a cluster know one another by a token; on several machines, copy this file to each.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$scratch/token RAY_USAGE_STATS_ENABLED=0
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
address=127.0.0.1:${PORT:-$(python3 -c "$free_port")}

start_node() {
    local log=$scratch/node${#nodes[@]}.log
    setsid ray start "$@" --num-cpus 1 --num-gpus 0 --object-store-memory 100000000 --block > "$log" 2>&1 &
    nodes+=($!)
    for ((tenths = 0; tenths < 600; tenths++)); do
        grep -qs "Ray runtime started" "$log" && return
        kill -0 $! 2> /dev/null || break
        sleep 0.1
    done
    cat "$log" >&2
    echo "$0: a node of the cluster didn't start; what it said is above" >&2
    exit 1
}

start_node --head --port "${address##*:}" --include-dashboard=false --temp-dir "$scratch/ray"
start_node --address "$address"

clipcls predict examples/images examples/others --labels cat,dog,truck,airplane,banana,bicycle,elephant,house,key,pizza,rose --model pictogram \
    --engine ray --ray-address "$address" --output-dir "$output" --format jsonl --resume

cat "$output"/part-*.jsonl
