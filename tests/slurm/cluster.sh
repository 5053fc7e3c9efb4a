#!/bin/bash
# A real two-node Slurm on this one machine, in a folder of its own: for tests of jobs/, needs root.
#
#   cluster.sh install           apt-get install slurm-wlm, munge and, to check the scripts, shellcheck where missing
#   cluster.sh start DIR         start munged, slurmctld and two slurmd (node1, node2); wait until both nodes idle
#   cluster.sh env DIR           print what a shell needs to use it:  eval "$(cluster.sh env DIR)"
#   cluster.sh kill-node DIR N   what a power cut does: SIGKILL to nodeN's slurmd, its slurmstepds and all their tasks
#   cluster.sh start-node DIR N  bring nodeN back
#   cluster.sh stop DIR          end every process of this cluster; the folder with its logs stays
#
# Nothing outside DIR is written and only processes that this script started, or that they started, are ended.
set -euo pipefail

NODES=(1 2)
CLUSTER_PROGRAMS=(slurmctld slurmd srun munged)
CPUS=${SLURM_TEST_CPUS:-4} # per node: what Slurm believes, whatever this machine has

die() {
    echo "cluster.sh: $*" >&2
    exit 1
}

# Whether these programs are there. (command -v with several names succeeds if any is.)
installed() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || return 1
    done
}

# Debian's service scripts would start daemons on the standard ports, which is not what we want: forbid it.
install_packages() {
    local policy=/usr/sbin/policy-rc.d
    ! installed "${CLUSTER_PROGRAMS[@]}" shellcheck || return 0
    apt-get update
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        # shellcheck disable=SC2064  # the name now
        trap "rm -f $policy" EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge shellcheck
}

# Three neighboring ports (slurmctld, node1, node2) that nobody listens on.
free_ports() {
    python3 - <<'PY'
import socket

for base in range(17000, 20000, 10):
    sockets = [socket.socket() for _ in range(3)]
    try:
        for i, s in enumerate(sockets):
            s.bind(("", base + i))
    except OSError:
        continue
    finally:
        for s in sockets:
            s.close()
    print(base)
    break
PY
}

write_config() {
    local host port
    host=$(hostname -s)
    port=$(free_ports)
    [ -n "$port" ] || die "no free ports"
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=iwestest
# Not from 1 on each time: what a killed job leaves in /dev/shm under its number would be met by its namesake.
FirstJobId=$((1000 + RANDOM * 20))
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again (120 s by default).
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=2,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmdTimeout=6
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=2
InactiveLimit=0
MinJobAge=600
UnkillableStepTimeout=20
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=$CPUS State=UNKNOWN
PartitionName=test Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
}

# Pids of slurmd, slurmstepd and tasks of this cluster: of node $1, or of all nodes.
# A slurmstepd is known by the daemon's log file that it holds open, a task by its environment.
pids_of() {
    local node=${1:-node[12]} proc
    for proc in /proc/[0-9]*; do
        if { tr '\0' '\n' <"$proc/environ" | grep -qx "SLURM_CONF=$DIR/slurm.conf" &&
            tr '\0' '\n' <"$proc/environ" | grep -qx "SLURMD_NODENAME=$node"; } 2>/dev/null ||
            find "$proc/fd" -lname "$DIR/slurmd-$node.log" 2>/dev/null | grep -q .; then
            echo "${proc#/proc/}"
        fi
    done
}

kill_pids() { # SIGNAL PID...; returns when they are gone
    local pid signal=$1 i
    shift
    for pid in "$@"; do
        kill "-$signal" "$pid" 2>/dev/null || true
    done
    for pid in "$@"; do
        for ((i = 0; i < 50; i++)); do
            grep -qs '^State:[[:space:]][^ZX]' "/proc/$pid/status" || break # nobody may be there to bury a zombie
            sleep 0.1
        done
    done
}

start_node() {
    mkdir -p "$DIR/spool-node$1"
    slurmd -N "node$1"
}

wait_idle() {
    local i
    for ((i = 0; i < 150; i++)); do
        if [ "$(timeout 5 sinfo -h -N -o '%T' 2>/dev/null | grep -cx 'idle')" = "${#NODES[@]}" ]; then
            return
        fi
        sleep 0.2
    done
    timeout 5 sinfo -N -l >&2 || true
    tail -n 5 "$DIR"/*.log >&2
    die "the nodes did not become idle within 30 s"
}

start() {
    [ "$(id -u)" = 0 ] || die "needs root"
    installed "${CLUSTER_PROGRAMS[@]}" || die "slurm-wlm or munge is not installed: cluster.sh install"
    [ ${#DIR} -le 90 ] || die "the path is too long for a Unix socket: $DIR"
    [ ! -e "$DIR/slurmctld.pid" ] || die "there is a cluster in $DIR already"
    mkdir -p "$DIR/state"
    chmod 755 "$DIR"
    write_config
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge.key")
    munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
        --log-file="$DIR/munged.log" --seed-file="$DIR/munge.seed" --num-threads=2
    slurmctld
    local node
    for node in "${NODES[@]}"; do
        start_node "$node"
    done
    wait_idle
}

stop() {
    local pids=()
    # The controller first, so that nothing is requeued; then the nodes with all that runs on them.
    [ ! -s "$DIR/slurmctld.pid" ] || kill_pids KILL "$(<"$DIR/slurmctld.pid")"
    mapfile -t pids < <(pids_of)
    kill_pids KILL "${pids[@]}"
    [ ! -s "$DIR/munged.pid" ] || kill_pids TERM "$(<"$DIR/munged.pid")"
    rm -f "$DIR"/*.pid
}

VERB=${1:-}
if [ "$VERB" = install ]; then
    install_packages
    exit
fi
[ $# -ge 2 ] || die "usage: cluster.sh install | start DIR | env DIR | kill-node DIR N | start-node DIR N | stop DIR"
DIR=$(realpath -m "$2")
export SLURM_CONF="$DIR/slurm.conf"
case $VERB in
    start)
        trap '[ $? = 0 ] || stop' EXIT
        start
        ;;
    env) echo "export SLURM_CONF='$SLURM_CONF'" ;;
    kill-node)
        mapfile -t pids < <(pids_of "node${3:?node number}")
        kill_pids KILL "${pids[@]}"
        ;;
    start-node) start_node "${3:?node number}" ;;
    pids) pids_of "${3:+node$3}" ;;
    stop) stop ;;
    *) die "unknown verb: $VERB" ;;
esac
