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
trap 'code=$?; say "FAILED: ${CHECK}, line $LINENO: $BASH_COMMAND (exit code $code)"; exit "$code"' ERR
set -E

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
    if ! dpkg-query -W -f '${Status}' patou 2>/dev/null | grep -q ' installed$'; then
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

all_up() { [ "$(systemctl is-active patou)" = active ] && patou status --wait 1ms; }

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
    journalctl --sync
    journalctl --quiet --lines=1 --show-cursor --output=cat | sed -n 's/^-- cursor: //p'
}
words_since() { # MARK [MORE OPTIONS]
    local cursor=$1
    shift
    journalctl --sync
    journalctl --quiet --after-cursor "$cursor" --output=cat --identifier=patou "$@"
}

# Nothing of a set: no process, socket, port, segment, pipe or file.
nothing_is_left() {
    local found
    found=$(pgrep --list-full --exact patou || true)
    [ -z "$found" ] || fail "left: $found"
    found=$(ss --no-header --listening --tcp --unix | grep -E 'patou|:7286|:73[0-9]{2}' || true)
    [ -z "$found" ] || fail "left: $found"
    found=$(find /dev/shm /run/patou /run/patou-applied /run/patou-watchdog -mindepth 1 2>/dev/null || true)
    [ -z "$found" ] || fail "left: $found"
    found=$(systemctl list-units --plain --no-legend --no-pager 'patou*.service' 'patou*.socket' || true)
    [ -z "$found" ] || fail "left: $found"
}

# ---------------------------------------------------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------------------------------------------------

# loop_curl CLIENTS [CURL OPTION...]: so many clients, each with one request after the other through the TCP listener,
# until load_stop, at most two minutes. A line per request: begin, end, curl's exit code, status, words.
loop_curl() {
    local clients=$1 n
    shift
    load=$(mktemp -d /run/load.XXXXXX)
    load_pids=()
    for ((n = 1; n <= clients; n++)); do
        (
            trap - ERR
            set +eE
            until_=$((SECONDS + 120))
            while [ ! -e "$load/stop" ] && ((SECONDS < until_)); do
                begin=$(micros)
                status=$(curl --silent --show-error --location --max-time 20 --output /dev/null \
                    --write-out '%{http_code}' "$@" "http://127.0.0.1:7286/client/$n" 2>"$load/words.$n")
                code=$?
                echo "$begin $(micros) $code $status $(tr '\n' ' ' <"$load/words.$n")" >>"$load/requests.$n"
            done
        ) &
        load_pids+=($!)
    done
    load_goes_on
}

# Until each client has been answered once more: so load before and after what is done under it.
load_goes_on() {
    local n done_before=()
    for ((n = 1; n <= ${#load_pids[@]}; n++)); do
        done_before[n]=$(wc -l <"$load/requests.$n" 2>/dev/null || echo 0)
    done
    for ((n = 1; n <= ${#load_pids[@]}; n++)); do
        wait_for 30 "client $n is answered" more_lines "$load/requests.$n" "${done_before[n]}"
    done
}
more_lines() { [ "$(wc -l <"$1")" -gt $(($2 + 1)) ]; }

# Ends the clients: $total and $failed requests, the $slowest in ms, and the $failures themselves.
load_stop() {
    load_goes_on
    touch "$load/stop"
    wait "${load_pids[@]}" || true
    cat "$load"/requests.* >"$load/all"
    total=$(wc -l <"$load/all")
    failures=$(awk '$3 != 0 || $4 != 200' "$load/all")
    failed=$(awk '$3 != 0 || $4 != 200' "$load/all" | wc -l)
    slowest=$(awk '{ t = ($2 - $1) / 1000; if (t > max) max = t } END { printf "%.0f", max }' "$load/all")
}

no_request_failed() { # WHAT
    load_stop
    ((failed == 0)) || fail "$1: $failed of $total requests failed (begin, end, curl, status): $failures"
    say "$1: $total requests, none failed, the slowest took $slowest ms"
}

# After load_stop: from that moment to the end of the first good request begun after it, in ms.
first_answer_after() {
    awk -v from="$1" '$1 > from && $3 == 0 && $4 == 200 && (!end || $2 < end) { end = $2 }
        END { if (end) printf "%.0f", (end - from) / 1000 }' "$load/all"
}
