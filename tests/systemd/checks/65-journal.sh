# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# The journal: fields and explanations, one request by its lease alone, and what handlers print.
. /checks/lib.sh
need_installed
forget_set

# Two lines of its own for each request, five minutes when it is asked for /slow, and a thousand lines when it is asked for /flood.
# shellcheck disable=SC2016 # $PATH_INFO is for the handler's shell
handler='{ exec = ["sh", "-c", "[ \"$PATH_INFO\" != /slow ] || sleep 300; printf \"Content-Type: text/plain\\r\\n\\r\\nserved\\n\"; printf \"a word\\nand \\033[31mred\\n\" >&2; [ \"$PATH_INFO\" != /flood ] || yes flood | head -n 1000 >&2"] }'
{ configuration && default_pool 2 "$handler"; } | configure
for unit in patou-dispatcher.service patou-worker@.service; do
    mkdir -p "/run/systemd/system/$unit.d"
    printf '[Service]\nEnvironment=PATOU_LOG=debug\n' >"/run/systemd/system/$unit.d/90-check.conf"
done
systemctl daemon-reload
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up
since=$(mark)

# records [MATCH...]: what the set has said since the mark, as JSON, a record a line.
records() {
    journalctl --sync
    # Not --after-cursor=: with a match it leaves out the first one. The mark itself is of somebody else.
    journalctl --quiet --cursor="$since" --output=json "$@" | jq -c 'select(.SYSLOG_IDENTIFIER == "patou")'
}
has_record() { [ -n "$(records "$@")" ]; }
# field NAME MATCH...: the values of a field, each once.
field() {
    local name=$1
    shift
    records "$@" | jq -r --arg name "$name" '.[$name] // "none"' | sort -u
}

# Every record says whose it is; a worker's also which worker, and whoever speaks of a worker names its pool.
expect "the body" "$(curl --silent --location http://127.0.0.1:7286/one)" served
wait_for 5 "the request is over" has_record PATOU_EVENT=lease-over
expect "PATOU_SET of all records" "$(field PATOU_SET)" patou
expect "records of a worker without PATOU_WORKER" \
    "$(records _SYSTEMD_UNIT=patou-worker@default-1.service _SYSTEMD_UNIT=patou-worker@default-2.service |
        jq -c 'select((.PATOU_WORKER // "") + (.PATOU_POOL // "") | test("^default/[12]default$") | not)')" ''
expect "records with MESSAGE_ID and without PATOU_EVENT, or the other way round" \
    "$(records | jq -c 'select(has("MESSAGE_ID") != has("PATOU_EVENT"))')" ''
expect "records without a priority from 3 to 7" "$(records | jq -c 'select(.PRIORITY | test("^[3-7]$") | not)')" ''

# One request, by its lease alone, from the dispatcher to the worker and back.
lease=$(field PATOU_LEASE PATOU_EVENT=lease-granted)
[[ $lease =~ ^[0-9]+\.[0-9]+$ ]] || fail "one request has the leases '$lease'"
steps=$(records "PATOU_LEASE=$lease" | jq -r '._SYSTEMD_UNIT + " " + .PATOU_EVENT' |
    sed -E 's/^patou-//; s/(@default-[12])?\.service//' | sort -u | tr '\n' ',')
expect "the way of lease $lease" "$steps" "dispatcher lease-answered,dispatcher lease-granted,dispatcher \
lease-offered,dispatcher lease-over,worker handler-output,worker lease-claimed,worker request-answered,"
expect "its status" "$(field PATOU_STATUS "PATOU_LEASE=$lease" PATOU_EVENT=request-answered)" 200

# What the handler prints, a record for each line, harmless to a terminal.
expect "what the handler said" "$(records "PATOU_LEASE=$lease" PATOU_EVENT=handler-output | jq -r .MESSAGE)" \
    $'a word\nand \\x1b[31mred'

# A flood stays within its share, is told, and leaves evidence its room.
curl --silent --location --output /dev/null http://127.0.0.1:7286/flood || fail "no answer to /flood"
wait_for 10 "it is said how much was left out" has_record PATOU_EVENT=handler-output-suppressed
said=$(records PATOU_EVENT=handler-output | wc -l)
suppressed=$(field PATOU_SUPPRESSED PATOU_EVENT=handler-output-suppressed)
((said <= 200 && said + suppressed == 1004)) || fail "$said lines were relayed and $suppressed left out, of 1004"

# The evidence of a worker that freezes with a request in hand, and its explanation with the fields filled in.
busy() { patou status --json | jq --exit-status --raw-output '.pools[].workers[] | select(.state == "busy") | .id'; }
freeze_busy() { # TARGET: the $evidence of worker $id, process $pid
    since=$(mark)
    curl --silent --location --max-time 60 --output /dev/null "http://127.0.0.1:7286$1" &
    wait_for 5 "a worker is busy" busy
    wait_for 5 "its handler sleeps" pgrep --exact sleep
    id=$(busy)
    lease=$(patou status --json | jq -r --arg id "$id" '.pools[].workers[] | select(.id == $id) | .lease')
    pid=$(main_pid "patou-worker@${id/\//-}.service")
    kill -STOP "$pid"
    wait "$!" || true
    wait_for 10 "the evidence is there" has_record MESSAGE_ID=b28474ca0605402eb89ccd6d07c3a12e
    evidence=$(records MESSAGE_ID=b28474ca0605402eb89ccd6d07c3a12e)
    wait_for 10 "worker $id is replaced" replaced "patou-worker@${id/\//-}.service" "$pid"
    wait_for 10 "worker $id serves" worker_serves "$id"
}
says() { # FIELD WORDS...: the field of the evidence has all of them
    local name=$1 found words
    found=$(jq -r --arg name "$name" '.[$name] // "none"' <<<"$evidence")
    shift
    for words in "$@"; do
        [[ $found == *"$words"* ]] || fail "$name of the evidence does not say '$words': $evidence"
    done
}
freeze_busy '/slow?secret=not-for-the-log'
journalctl --quiet --cursor="$since" MESSAGE_ID=b28474ca0605402eb89ccd6d07c3a12e
expect "what the evidence says" "$(jq -r '[._SYSTEMD_UNIT, .PRIORITY, .PATOU_PART, .PATOU_POOL, .PATOU_PID, .PATOU_EVENT,
    .PATOU_STATE, .PATOU_LEASE, .PATOU_PHASE, .PATOU_REQUEST, .PATOU_THREADS] | join(",")' <<<"$evidence")" \
    "patou-watchdog.service,3,worker $id,default,$pid,part-killed,T (stopped),$lease,nothing answered yet,GET /slow,2"
says PATOU_DOING "control: stopped"
says PATOU_CHILDREN " old: sleep 300"
says PATOU_WHY "frozen"
says MESSAGE "worker $id is frozen (no sign of life for " ": killing it" "held: lease $lease, nothing answered yet, claimed " \
    "ago: GET /slow" "sleep 300" "machine: load " \
    "not permitted to see: wait channels, system calls, kernel stacks; see EVIDENCE in patou(7)"
[[ $evidence != *not-for-the-log* ]] || fail "the evidence shows the query: $evidence"
for number in CLAIM_AGE_MS LATE_MS MEMORY_AVAILABLE EPOCH; do
    jq --exit-status ".PATOU_$number | tonumber >= 0" <<<"$evidence" >/dev/null || fail "PATOU_$number is not there: $evidence"
done
explained=$(journalctl --quiet --catalog --cursor="$since" PATOU_EVENT=part-killed)
for words in "Subject: The worker $id is killed and replaced" 'Defined-By: patou' "what process $pid was doing"; do
    [[ $explained == *"$words"* ]] || fail "journalctl -x does not say '$words': $explained"
done

# What the kernel keeps from the watchdog, an operator may permit it: the drop-in of patou(7).
mkdir -p /run/systemd/system/patou-watchdog.service.d
cat >/run/systemd/system/patou-watchdog.service.d/90-evidence.conf <<'UNIT'
[Service]
AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_SYS_ADMIN
CapabilityBoundingSet=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_SYS_ADMIN
UNIT
systemctl daemon-reload
systemctl restart patou-watchdog.service
freeze_busy /slow
says PATOU_DOING "patou: stopped in do_signal_stop < " ", system call "
[[ $evidence != *"not permitted"* ]] || fail "something is still not permitted: $evidence"
rm -r /run/systemd/system/patou-watchdog.service.d
systemctl daemon-reload
systemctl restart patou-watchdog.service

# A frozen dispatcher: who waited, and what is out.
since=$(mark)
pid=$(main_pid patou-dispatcher.service)
kill -STOP "$pid"
wait_for 10 "the evidence is there" has_record PATOU_EVENT=part-killed
evidence=$(records PATOU_EVENT=part-killed)
says PATOU_PART dispatcher
says MESSAGE "held: no client waiting, as it said " " ago; 0 leases out"
expect "its queue and leases" "$(jq -r '[.PATOU_QUEUE, .PATOU_LEASES, .PATOU_PID] | join(" ")' <<<"$evidence")" "0 0 $pid"
wait_for 10 "the dispatcher is replaced" replaced patou-dispatcher.service "$pid"
wait_for 10 "the set is up" all_up

# Every number that was used is explained.
for id in $(records | jq -r '.MESSAGE_ID // empty' | sort -u); do
    journalctl --list-catalog "$id" | has ' patou: ' || fail "the catalog does not explain $id"
done

# A refused reload says why, under the unit that was asked.
echo '[set' | configure
expect_failure "systemctl reload patou" systemctl reload patou
has_record _SYSTEMD_UNIT=patou.service PATOU_EVENT=reload-refused || fail "the journal does not say why the reload was refused"

# At level info a healthy request leaves no line.
rm -r /run/systemd/system/patou-{dispatcher.service,worker@.service}.d/90-check.conf
systemctl daemon-reload
standard
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up
since=$(mark)
for _ in {1..20}; do curl --silent --location --fail --output /dev/null http://127.0.0.1:7286/hello || fail "no answer"; done
expect "records of twenty healthy requests" "$(records | jq -c .MESSAGE)" ''
keep_set
