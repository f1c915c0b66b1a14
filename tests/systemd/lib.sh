# shellcheck shell=bash disable=SC2034 # the checks use the variables set here
# Functions shared by the checks. Each check sources this file, as root inside the machine, with `set -euo pipefail`.
#
# A check passes if it exits with 0. `request_reboot` ends it; after the reboot it runs again with PHASE=2, then 3, ...
# Each check establishes its preconditions (ensure_installed, ensure_started), so that it can also run alone.

deb=$(find /debs -name '1-*.deb') # the package under test
check_dir=/var/tmp/check          # files of one check, kept across its reboots
mkdir -p "$check_dir"

log() { printf '%s\n' "$*"; }
figure() { printf 'figure: %s\n' "$*"; }
request_reboot() { exit 77; }

# Prints the failure and the state of the set, and ends the check.
fail() {
    log "FAILED: $*"
    log "--- units:"
    systemctl list-units --all --plain --no-legend --no-pager 'patou*' || true
    log "--- patou status:"
    patou status 2>&1 || true
    # Clients that keep running would disturb the next checks.
    jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true
    exit 1
}

# A command that fails without a message ends the check with its line number.
trap 'log "FAILED: $CHECK, line $LINENO: $BASH_COMMAND"' ERR
set -E

# Like grep -q, but reads all input, so that the writer of a pipe does not get SIGPIPE.
has() { grep "$@" >/dev/null; }

micros() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }
millis_since() { printf '%s' $((($(micros) - $1) / 1000)); }

# wait_for SECONDS WHAT COMMAND...: waits until the command succeeds; the check fails after SECONDS.
wait_for() {
    local bound=$1 what=$2 end
    shift 2
    end=$(($(micros) + bound * 1000000))
    until "$@" >/dev/null 2>&1; do
        (($(micros) < end)) || fail "not within $bound s: $what"
        sleep 0.01
    done
}

expect() { # WHAT FOUND WANTED
    [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"
}

# expect_failure WHAT COMMAND...: leaves the output of the command in $output.
expect_failure() {
    local what=$1
    shift
    if output=$("$@" 2>&1); then fail "$what succeeded unexpectedly: $output"; fi
}

# ---------------------------------------------------------------------------------------------------------------------
# The package and the configuration
# ---------------------------------------------------------------------------------------------------------------------

ensure_installed() {
    if ! dpkg-query -W -f '${Status}' patou 2>/dev/null | has ' installed$'; then
        # The files before the installation, for the check of the purge.
        [ -e /var/tmp/files-before ] || list_files >/var/tmp/files-before
        apt-get install --quiet --quiet --yes "$deb" >"$check_dir/apt" 2>&1 || fail "apt-get install: $(cat "$check_dir/apt")"
    fi
}

list_files() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp \
        -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /root \) -prune \
        -o -print | sort
}

# The packaged redirect listener and one on TCP, without a pool.
base_configuration() {
    cat <<'TOML'
[set]
name = "patou"
runtime_dir = "/run/patou"

[[listener]]
address = "unix:/run/patou/lease.sock"
mode = 0o660
owner = "patou"
group = "patou"
pool = "default"

[[listener]]
address = "127.0.0.1:7286"
pool = "default"
TOML
}

default_pool() { # WORKERS [HANDLER [MORE]]
    printf '\n[[pool]]\nname = "default"\nworkers = %s\nhandler = %s\naddress = "127.0.0.1:7300"\n%s\n' \
        "$1" "${2:-\"echo\"}" "${3:-}"
}

configure() { # from standard input
    mkdir -p /etc/patou
    cat >/etc/patou/patou.toml.new
    mv /etc/patou/patou.toml.new /etc/patou/patou.toml
}

configure_standard() { { base_configuration && default_pool 3; } | configure; }

# The whole set runs on the standard configuration of the checks, and every part is up.
ensure_started() {
    ensure_installed
    local running=''
    [ ! -e "$check_dir/../running" ] || running=$(cat "$check_dir/../running")
    configure_standard
    systemctl reset-failed 'patou*' 2>/dev/null || true
    if [ "$running" != standard ] || ! all_up; then
        systemctl restart patou || fail "systemctl restart patou"
        wait_for 20 "the set is up" all_up
    fi
    mark_set_changed
    parts=(patou-watchdog.service patou-dispatcher.service)
    parts+=(patou-worker@default-{1,2,3}.service)
    workers=("${parts[@]:2}")
}

# A check that leaves the set as ensure_started needs it ends with mark_set_standard, which saves the next a restart.
mark_set_changed() { rm -f "$check_dir/../running"; }
mark_set_standard() { echo standard >"$check_dir/../running"; }

# Applies a configuration with another handler. The workers replace themselves one after the other, each without a request,
# and may not have finished when the reload returns.
reload_handlers() {
    local before
    before=$(epochs)
    systemctl reload patou || fail "systemctl reload patou with another handler"
    wait_for 10 "every worker has its new handler" are_replaced "$before"
    wait_for 10 "the set is up" all_up
}
epochs() { patou status --json | jq --compact-output '[.pools[].workers[] | {key: .id, value: .epoch}] | from_entries'; }
are_replaced() { patou status --json | jq --exit-status --argjson before "$1" '[.pools[].workers[] | .epoch != $before[.id]] | all' >/dev/null; }

all_up() { [ "$(systemctl is-active patou)" = active ] && patou status --wait 1ms >/dev/null; }

# ---------------------------------------------------------------------------------------------------------------------
# Units and processes
# ---------------------------------------------------------------------------------------------------------------------

main_pid() { systemctl show --value --property MainPID "$1"; }
show() { systemctl show --value --property "$2" "$1"; }

# parts_except UNIT...: a line per part: unit, main process, restarts by systemd.
parts_except() {
    local unit
    for unit in "${parts[@]}"; do
        [[ " $* " == *" $unit "* ]] || printf '%s %s %s\n' "$unit" "$(main_pid "$unit")" "$(show "$unit" NRestarts)"
    done
}

# The units of the listeners on these addresses (values of ListenStream=).
listener_socket() {
    local address file
    for address in "$@"; do
        file=$(grep --files-with-matches --line-regexp "ListenStream=$address" /run/patou-applied/set/drop-ins/patou-listener@*/*.conf)
        basename "${file%.d/*}"
    done
}

# A line per socket, and since when it has been open.
sockets() { sockets_named patou-probe.socket patou-admin.socket "$(listener_socket /run/patou/lease.sock)" "$(listener_socket 127.0.0.1:7286)" patou-worker@default-{1,2,3}.socket; }
sockets_named() {
    local unit
    for unit in "$@"; do
        printf '%s %s %s\n' "$unit" "$(systemctl is-active "$unit")" "$(show "$unit" InactiveExitTimestampMonotonic)"
    done
}

worker_state() { patou status --json | jq -r --arg id "$1" '.pools[].workers[] | select(.id == $id) | .state'; }
worker_is() { [ "$(worker_state "$1")" = "$2" ]; }
worker_serves() { [[ "$(worker_state "$1")" =~ ^(idle|leased|busy)$ ]]; }
id_of() { [[ $1 =~ @(.*)-([0-9]+)\.service ]] && printf '%s/%s' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"; }

is_inactive() { [ "$(systemctl is-active "$1")" = inactive ]; }
is_activating() { [ "$(systemctl is-active "$1")" = activating ]; }
status_has() { patou status | has -- "$1"; }
log_has() { messages_since "$1" | has -F -- "$2"; } # MARK TEXT
unit_failed() { [ "$(systemctl is-failed "$1")" = failed ]; }

# The part runs as a new process.
replaced() { # UNIT OLD-PID
    local pid
    pid=$(main_pid "$1")
    [ "$pid" != 0 ] && [ "$pid" != "$2" ] && [ "$(systemctl is-active "$1")" = active ]
}

responds_on_unix() { [ "$(patou call --retry 0s --target unix:/run/patou/lease.sock /hello 2>/dev/null)" != "" ]; }
responds_on_tcp() { curl --silent --fail --location --max-time 5 --output /dev/null http://127.0.0.1:7286/hello; }

replaced_or_failed() { unit_failed "$1" || replaced "$@"; }

# mark prints a cursor; messages_since prints the set's journal messages after it.
mark() {
    systemd-cat --identifier=check echo "mark"
    journalctl --sync || true # fails if /run is full
    journalctl --quiet --lines=1 --show-cursor --output=cat | sed -n 's/^-- cursor: //p'
}
messages_since() { # MARK [MORE OPTIONS]
    local cursor=$1
    shift
    journalctl --sync || true # fails if /run is full
    # Not --after-cursor=: with a filter it omits the first message. The mark has another identifier.
    journalctl --quiet --cursor="$cursor" --output=cat --identifier=patou "$@"
}

# The set left no process, socket, port, segment, doorbell, file or unit behind, except failed units of that name.
assert_nothing_left() { assert_nothing_left_except 'none'; }
assert_nothing_left_except() { # UNITS, a regular expression
    local found
    found=$(pgrep --list-full --exact patou || true)
    [ -z "$found" ] || fail "left behind: $found"
    found=$(ss --no-header --listening --tcp --unix | grep -E 'patou|:7286|:73[0-9]{2}' || true)
    [ -z "$found" ] || fail "left behind: $found"
    found=$(find /dev/shm /run/patou /run/patou-applied /run/patou-watchdog -mindepth 1 2>/dev/null || true)
    [ -z "$found" ] || fail "left behind: $found"
    found=$(systemctl list-units --plain --no-legend --no-pager 'patou*.service' 'patou*.socket' | grep -vE "^($1)" || true)
    [ -z "$found" ] || fail "left behind: $found"
}

# ---------------------------------------------------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------------------------------------------------

# load_start CLIENTS [CURL OPTION...]: runs CLIENTS clients until load_stop. Each sends sequential requests, at most 50
# per second, to the TCP listener, and logs for each: end time, exit code of curl, status, duration in s, error message.
load_start() {
    local clients=$1 n
    shift
    load=$(mktemp -d /run/load.XXXXXX)
    curls=() readers=()
    for ((n = 1; n <= clients; n++)); do
        mkfifo "$load/output.$n"
        : >"$load/requests.$n"
        while read -r line; do
            echo "${EPOCHREALTIME/[.,]/} $line"
        done <"$load/output.$n" >>"$load/requests.$n" &
        readers+=($!)
        curl --silent --location --max-time 20 --rate 50/s --output /dev/null \
            --write-out '%{stderr}%{exitcode} %{http_code} %{time_total} %{errormsg}\n' \
            "$@" "http://127.0.0.1:7286/client/$n/[1-100000]" 2>"$load/output.$n" &
        curls+=($!)
    done
    load_settle
}

# Waits until each client has had a few more responses, so that there is load before and after the action under test.
load_settle() {
    local n lines=()
    for ((n = 1; n <= ${#curls[@]}; n++)); do
        lines[n]=$(wc -l <"$load/requests.$n")
    done
    for ((n = 1; n <= ${#curls[@]}; n++)); do
        wait_for 30 "client $n gets responses" has_more_lines "$load/requests.$n" "${lines[n]}"
    done
}
has_more_lines() { [ "$(wc -l <"$1")" -gt $(($2 + 3)) ]; }

# Stops the clients and sets $total and $failed requests, the $slowest in ms, and the lines of the $failures.
load_stop() {
    load_settle
    kill "${curls[@]}"
    wait "${curls[@]}" "${readers[@]}" 2>/dev/null || true
    cat "$load"/requests.* >"$load/all"
    total=$(wc -l <"$load/all")
    failures=$(awk '$2 != 0 || $3 != 200' "$load/all")
    failed=$(awk '$2 != 0 || $3 != 200' "$load/all" | wc -l)
    slowest=$(awk '$4 > max { max = $4 } END { printf "%.0f", max * 1000 }' "$load/all")
}

load_stop_without_failure() { # WHAT
    load_stop
    ((failed == 0)) || fail "$1: $failed of $total requests failed (end time, exit code of curl, status, duration in s, error message): $failures"
    log "$1: $total requests, none failed, slowest $slowest ms"
}

# first_response_after TIME: the time in ms from TIME to the end of the first successful request sent after it. Call
# after load_stop.
first_response_after() {
    awk -v from="$1" '$2 == 0 && $3 == 200 && $1 - $4 * 1000000 > from && (!end || $1 < end) { end = $1 }
        END { if (end) printf "%.0f", (end - from) / 1000 }' "$load/all"
}
