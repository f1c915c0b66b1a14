# shellcheck shell=bash disable=SC2034 # what is set here is for the checks
# What the checks share. Each sources it, as root inside the machine, with `set -euo pipefail`.
#
# A check holds if it ends with 0. `reboot_here` ends it and has it called again, with PHASE=2 (then 3, ...), after a
# reboot. Each check brings about what it needs (need_installed, need_started), so that it also runs alone.

deb=$(find /debs -name '1-*.deb') # the package under test
check_dir=/var/tmp/check          # what one check leaves for itself, across its reboots
mkdir -p "$check_dir"

say() { printf '%s\n' "$*"; }
figure() { printf 'figure: %s\n' "$*"; }
reboot_here() { exit 77; }

# Says what is wrong, how things are, and ends the check.
fail() {
    say "FAILED: $*"
    say "--- units:"
    systemctl list-units --all --plain --no-legend --no-pager 'patou*' || true
    say "--- patou status:"
    patou status 2>&1 || true
    exit 1
}

# A command that fails without a word of its own ends the check with its line.
trap 'say "FAILED: $CHECK, line $LINENO: $BASH_COMMAND"' ERR
set -E

# grep -q at the end of a pipe, which reads to the end: who writes must not die of a reader that has seen enough.
has() { grep "$@" >/dev/null; }

micros() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }
millis_since() { printf '%s' $((($(micros) - $1) / 1000)); }

# wait_for SECONDS WHAT COMMAND...: until the command succeeds; the check fails after SECONDS.
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

# expect_failure WHAT COMMAND...: its words are in $answer.
expect_failure() {
    local what=$1
    shift
    if answer=$("$@" 2>&1); then fail "$what went well: $answer"; fi
}

# ---------------------------------------------------------------------------------------------------------------------
# The package and the configuration
# ---------------------------------------------------------------------------------------------------------------------

need_installed() {
    if ! dpkg-query -W -f '${Status}' patou 2>/dev/null | has ' installed$'; then
        # What was there before, for who looks at what a purge leaves.
        [ -e /var/tmp/files-before ] || list_files >/var/tmp/files-before
        apt-get install --quiet --quiet --yes "$deb" >"$check_dir/apt" 2>&1 || fail "apt-get install: $(cat "$check_dir/apt")"
    fi
}

list_files() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp \
        -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /root \) -prune \
        -o -print | sort
}

# Three workers on TCP, and the packaged Unix listener. Standard input is added.
configuration() {
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

standard() { { configuration && default_pool 3; } | configure; }

# The whole set, on the configuration of the checks, everybody at work.
need_started() {
    need_installed
    local running=''
    [ ! -e "$check_dir/../running" ] || running=$(cat "$check_dir/../running")
    standard
    systemctl reset-failed 'patou*' 2>/dev/null || true
    if [ "$running" != standard ] || ! all_up; then
        systemctl restart patou || fail "systemctl restart patou"
        wait_for 20 "the set is up" all_up
    fi
    forget_set
    parts=(patou-watchdog.service patou-dispatcher.service)
    parts+=(patou-worker@default-{1,2,3}.service)
    workers=("${parts[@]:2}")
}

# Whoever leaves the set as need_started wants it says so with its last line: the next check saves a restart.
forget_set() { rm -f "$check_dir/../running"; }
keep_set() { echo standard >"$check_dir/../running"; }

all_up() { [ "$(systemctl is-active patou)" = active ] && patou status --wait 1ms >/dev/null; }

# ---------------------------------------------------------------------------------------------------------------------
# What runs
# ---------------------------------------------------------------------------------------------------------------------

main_pid() { systemctl show --value --property MainPID "$1"; }
show() { systemctl show --value --property "$2" "$1"; }

# A line per part: unit, main process, restarts by systemd. Without the ones named.
others_than() {
    local unit
    for unit in "${parts[@]}"; do
        [[ " $* " == *" $unit "* ]] || printf '%s %s %s\n' "$unit" "$(main_pid "$unit")" "$(show "$unit" NRestarts)"
    done
}

# A line per socket, and since when it has been open.
sockets() {
    local unit
    for unit in patou-probe.socket patou-admin.socket patou-listener@{0,1}.socket patou-worker@default-{1,2,3}.socket; do
        printf '%s %s %s\n' "$unit" "$(systemctl is-active "$unit")" "$(show "$unit" InactiveExitTimestampMonotonic)"
    done
}

worker_state() { patou status --json | jq -r --arg id "$1" '.pools[].workers[] | select(.id == $id) | .state'; }
worker_is() { [ "$(worker_state "$1")" = "$2" ]; }
worker_serves() { [[ "$(worker_state "$1")" =~ ^(idle|leased|busy)$ ]]; }
id_of() { [[ $1 =~ @(.*)-([0-9]+)\.service ]] && printf '%s/%s' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"; }

given_up() { [ "$(systemctl is-failed "$1")" = failed ]; }

# A part is another process, at work.
replaced() { # UNIT OLD-PID
    local pid
    pid=$(main_pid "$1")
    [ "$pid" != 0 ] && [ "$pid" != "$2" ] && [ "$(systemctl is-active "$1")" = active ]
}

answered() { [ "$(patou call --retry 0s --target unix:/run/patou/lease.sock /hello 2>/dev/null)" != "" ]; }
answered_on_tcp() { curl --silent --fail --location --max-time 5 --output /dev/null http://127.0.0.1:7286/hello; }

replaced_or_given_up() { given_up "$1" || replaced "$@"; }

# What the journal says since a mark, of the set alone.
mark() {
    systemd-cat --identifier=check echo "mark"
    journalctl --sync || true # not with a full /run
    journalctl --quiet --lines=1 --show-cursor --output=cat | sed -n 's/^-- cursor: //p'
}
words_since() { # MARK [MORE OPTIONS]
    local cursor=$1
    shift
    journalctl --sync || true # not with a full /run
    # Not --after-cursor=: with a filter it leaves out the first one. The mark itself is of somebody else.
    journalctl --quiet --cursor="$cursor" --output=cat --identifier=patou "$@"
}

# Nothing of a set: no process, socket, port, segment, pipe, file or unit; but units that have failed may be named.
nothing_is_left() { nothing_is_left_but 'none'; }
nothing_is_left_but() { # UNITS, an expression
    local found
    found=$(pgrep --list-full --exact patou || true)
    [ -z "$found" ] || fail "left: $found"
    found=$(ss --no-header --listening --tcp --unix | grep -E 'patou|:7286|:73[0-9]{2}' || true)
    [ -z "$found" ] || fail "left: $found"
    found=$(find /dev/shm /run/patou /run/patou-applied /run/patou-watchdog -mindepth 1 2>/dev/null || true)
    [ -z "$found" ] || fail "left: $found"
    found=$(systemctl list-units --plain --no-legend --no-pager 'patou*.service' 'patou*.socket' | grep -vE "^($1)" || true)
    [ -z "$found" ] || fail "left: $found"
}

# ---------------------------------------------------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------------------------------------------------

# loop_curl CLIENTS [CURL OPTION...]: so many clients, each with one request after the other through the TCP listener,
# fifty a second at most, until load_stop. A line per request: its end, curl's exit code, status, seconds, words.
loop_curl() {
    local clients=$1 n
    shift
    load=$(mktemp -d /run/load.XXXXXX)
    curls=() readers=()
    for ((n = 1; n <= clients; n++)); do
        mkfifo "$load/words.$n"
        : >"$load/requests.$n"
        while read -r line; do
            echo "${EPOCHREALTIME/[.,]/} $line"
        done <"$load/words.$n" >>"$load/requests.$n" &
        readers+=($!)
        curl --silent --location --max-time 20 --rate 50/s --output /dev/null \
            --write-out '%{stderr}%{exitcode} %{http_code} %{time_total} %{errormsg}\n' \
            "$@" "http://127.0.0.1:7286/client/$n/[1-100000]" 2>"$load/words.$n" &
        curls+=($!)
    done
    load_goes_on
}

# Until each client has been answered a few times more: so load before and after what is done under it.
load_goes_on() {
    local n lines=()
    for ((n = 1; n <= ${#curls[@]}; n++)); do
        lines[n]=$(wc -l <"$load/requests.$n")
    done
    for ((n = 1; n <= ${#curls[@]}; n++)); do
        wait_for 30 "client $n is answered" more_lines "$load/requests.$n" "${lines[n]}"
    done
}
more_lines() { [ "$(wc -l <"$1")" -gt $(($2 + 3)) ]; }

# Ends the clients: $total and $failed requests, the $slowest in ms, and the $failures themselves.
load_stop() {
    load_goes_on
    kill "${curls[@]}"
    wait "${curls[@]}" "${readers[@]}" 2>/dev/null || true
    cat "$load"/requests.* >"$load/all"
    total=$(wc -l <"$load/all")
    failures=$(awk '$2 != 0 || $3 != 200' "$load/all")
    failed=$(awk '$2 != 0 || $3 != 200' "$load/all" | wc -l)
    slowest=$(awk '$4 > max { max = $4 } END { printf "%.0f", max * 1000 }' "$load/all")
}

no_request_failed() { # WHAT
    load_stop
    ((failed == 0)) || fail "$1: $failed of $total requests failed (end, curl's code, status, seconds, words): $failures"
    say "$1: $total requests, none failed, the slowest took $slowest ms"
}

# After load_stop: from that moment to the end of the first good request begun after it, in ms.
first_answer_after() {
    awk -v from="$1" '$2 == 0 && $3 == 200 && $1 - $4 * 1000000 > from && (!end || $1 < end) { end = $1 }
        END { if (end) printf "%.0f", (end - from) / 1000 }' "$load/all"
}
