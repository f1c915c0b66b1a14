# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# The journal: fields and explanations, one request by its lease alone, and the output of handlers.
. /checks/lib.sh
ensure_installed
mark_set_changed

# The handler prints two lines for each request, sleeps five minutes for /slow, and prints a thousand more for /flood.
# shellcheck disable=SC2016 # the handler's shell expands $PATH_INFO
handler='{ exec = ["sh", "-c", "[ \"$PATH_INFO\" != /slow ] || sleep 300; printf \"Content-Type: text/plain\\r\\n\\r\\nserved\\n\"; printf \"a word\\nand \\033[31mred\\n\" >&2; [ \"$PATH_INFO\" != /flood ] || yes flood | head -n 1000 >&2"] }'
{ base_configuration && default_pool 2 "$handler"; } | configure
for unit in patou-dispatcher.service patou-worker@.service; do
    mkdir -p "/run/systemd/system/$unit.d"
    printf '[Service]\nEnvironment=PATOU_LOG=debug\n' >"/run/systemd/system/$unit.d/90-check.conf"
done
systemctl daemon-reload
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up
since=$(mark)

# records [MATCH...]: the records of the set since the mark, one JSON object per line.
records() {
    journalctl --sync
    # Not --after-cursor=: with a match it omits the first record. The mark has another identifier.
    journalctl --quiet --cursor="$since" --output=json "$@" | jq -c 'select(.SYSLOG_IDENTIFIER == "patou")'
}
has_record() { [ -n "$(records "$@")" ]; }
# field NAME MATCH...: the distinct values of a field.
field() {
    local name=$1
    shift
    records "$@" | jq -r --arg name "$name" '.[$name] // "none"' | sort -u
}

# Every record names the set; a record of a worker, or about one, also names the worker and its pool.
expect "the body" "$(curl --silent --location http://127.0.0.1:7286/one)" served
wait_for 5 "the request is over" has_record PATOU_EVENT=lease-over
expect "PATOU_SET of all records" "$(field PATOU_SET)" patou
expect "records of a worker without PATOU_WORKER" \
    "$(records _SYSTEMD_UNIT=patou-worker@default-1.service _SYSTEMD_UNIT=patou-worker@default-2.service |
        jq -c 'select((.PATOU_WORKER // "") + (.PATOU_POOL // "") | test("^default/[12]default$") | not)')" ''
expect "records with only one of MESSAGE_ID and PATOU_EVENT" \
    "$(records | jq -c 'select(has("MESSAGE_ID") != has("PATOU_EVENT"))')" ''
expect "records without a priority from 3 to 7" "$(records | jq -c 'select(.PRIORITY | test("^[3-7]$") | not)')" ''

# One request, followed by its lease alone, from the dispatcher to the worker and back.
lease=$(field PATOU_LEASE PATOU_EVENT=lease-granted)
[[ $lease =~ ^[0-9]+\.[0-9]+$ ]] || fail "the request has the leases '$lease'"
steps=$(records "PATOU_LEASE=$lease" | jq -r '._SYSTEMD_UNIT + " " + .PATOU_EVENT' |
    sed -E 's/^patou-//; s/(@default-[12])?\.service//' | sort -u | tr '\n' ',')
expect "the steps of lease $lease" "$steps" "dispatcher lease-answered,dispatcher lease-granted,dispatcher \
lease-offered,dispatcher lease-over,worker handler-output,worker lease-claimed,worker request-answered,"
expect "its status" "$(field PATOU_STATUS "PATOU_LEASE=$lease" PATOU_EVENT=request-answered)" 200

# The output of the handler: one record per line, control characters escaped.
expect "the output of the handler" "$(records "PATOU_LEASE=$lease" PATOU_EVENT=handler-output | jq -r .MESSAGE)" \
    $'a word\nand \\x1b[31mred'

# A flood is limited, and the number of dropped lines is logged.
curl --silent --location --output /dev/null http://127.0.0.1:7286/flood || fail "no response to /flood"
wait_for 10 "the number of dropped lines is logged" has_record PATOU_EVENT=handler-output-suppressed
logged=$(records PATOU_EVENT=handler-output | wc -l)
suppressed=$(field PATOU_SUPPRESSED PATOU_EVENT=handler-output-suppressed)
((logged <= 200 && logged + suppressed == 1004)) || fail "$logged lines were logged and $suppressed dropped, of 1004"

# The evidence of a worker that freezes during a request, and the catalog entry with the fields filled in.
busy() { patou status --json | jq --exit-status --raw-output '.pools[].workers[] | select(.state == "busy") | .id'; }
freeze_busy() { # TARGET: sets $evidence of worker $id, process $pid
    since=$(mark)
    curl --silent --location --max-time 60 --output /dev/null "http://127.0.0.1:7286$1" &
    wait_for 5 "a worker is busy" busy
    wait_for 5 "its handler sleeps" pgrep --exact sleep
    id=$(busy)
    lease=$(patou status --json | jq -r --arg id "$id" '.pools[].workers[] | select(.id == $id) | .lease')
    pid=$(main_pid "patou-worker@${id/\//-}.service")
    kill -STOP "$pid"
    wait "$!" || true
    wait_for 10 "the evidence is logged" has_record MESSAGE_ID=b28474ca0605402eb89ccd6d07c3a12e
    evidence=$(records MESSAGE_ID=b28474ca0605402eb89ccd6d07c3a12e)
    wait_for 10 "worker $id is replaced" replaced "patou-worker@${id/\//-}.service" "$pid"
    wait_for 10 "worker $id serves" worker_serves "$id"
}
evidence_has() { # FIELD TEXT...: the field of the evidence contains each text
    local name=$1 found text
    found=$(jq -r --arg name "$name" '.[$name] // "none"' <<<"$evidence")
    shift
    for text in "$@"; do
        [[ $found == *"$text"* ]] || fail "$name of the evidence has no '$text': $evidence"
    done
}
freeze_busy '/slow?secret=not-for-the-log'
journalctl --quiet --cursor="$since" MESSAGE_ID=b28474ca0605402eb89ccd6d07c3a12e
expect "the fields of the evidence" "$(jq -r '[._SYSTEMD_UNIT, .PRIORITY, .PATOU_PART, .PATOU_POOL, .PATOU_PID, .PATOU_EVENT,
    .PATOU_STATE, .PATOU_LEASE, .PATOU_PHASE, .PATOU_REQUEST, .PATOU_THREADS] | join(",")' <<<"$evidence")" \
    "patou-watchdog.service,3,worker $id,default,$pid,part-killed,T (stopped),$lease,no response yet,GET /slow,3"
evidence_has PATOU_DOING "control: stopped"
evidence_has PATOU_CHILDREN " old: sleep 300"
evidence_has PATOU_WHY "frozen"
evidence_has MESSAGE "worker $id is frozen (no sign of life for " ": killing it" \
    "held: lease $lease, no response yet, claimed " \
    "ago: GET /slow" "sleep 300" "machine: load " \
    "not permitted to read: wait channels, system calls, kernel stacks; see EVIDENCE in patou(7)"
[[ $evidence != *not-for-the-log* ]] || fail "the evidence shows the query: $evidence"
for number in CLAIM_AGE_MS LATE_MS MEMORY_AVAILABLE EPOCH; do
    jq --exit-status ".PATOU_$number | tonumber >= 0" <<<"$evidence" >/dev/null || fail "PATOU_$number is missing: $evidence"
done
explained=$(journalctl --quiet --catalog --cursor="$since" PATOU_EVENT=part-killed)
for text in "Subject: The worker $id is killed and replaced" 'Defined-By: patou' "what process $pid was doing"; do
    [[ $explained == *"$text"* ]] || fail "journalctl -x has no '$text': $explained"
done

# With the drop-in of patou(7) the watchdog can also read what the kernel denies it by default.
mkdir -p /run/systemd/system/patou-watchdog.service.d
cat >/run/systemd/system/patou-watchdog.service.d/90-evidence.conf <<'UNIT'
[Service]
AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_SYS_ADMIN
CapabilityBoundingSet=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_SYS_ADMIN
UNIT
systemctl daemon-reload
systemctl restart patou-watchdog.service
freeze_busy /slow
evidence_has PATOU_DOING "patou: stopped in do_signal_stop < " ", system call "
[[ $evidence != *"not permitted"* ]] || fail "the evidence is still incomplete: $evidence"
rm -r /run/systemd/system/patou-watchdog.service.d
systemctl daemon-reload
systemctl restart patou-watchdog.service

# A frozen dispatcher: its queue and its leases.
since=$(mark)
pid=$(main_pid patou-dispatcher.service)
kill -STOP "$pid"
wait_for 10 "the evidence is logged" has_record PATOU_EVENT=part-killed
evidence=$(records PATOU_EVENT=part-killed)
evidence_has PATOU_PART dispatcher
evidence_has MESSAGE "held: no waiting client (reported " " ago); 0 active leases"
expect "its queue and leases" "$(jq -r '[.PATOU_QUEUE, .PATOU_LEASES, .PATOU_PID] | join(" ")' <<<"$evidence")" "0 0 $pid"
wait_for 10 "the dispatcher is replaced" replaced patou-dispatcher.service "$pid"
wait_for 10 "the set is up" all_up

# The catalog explains every MESSAGE_ID that occurred.
for id in $(records | jq -r '.MESSAGE_ID // empty' | sort -u); do
    journalctl --list-catalog "$id" | has ' patou: ' || fail "the catalog does not explain $id"
done

# A rejected reload logs the reason under patou.service.
echo '[set' | configure
expect_failure "systemctl reload patou" systemctl reload patou
has_record _SYSTEMD_UNIT=patou.service PATOU_EVENT=reload-refused || fail "the journal has no reason for the rejected reload"

# At level info a successful request is not logged.
rm -r /run/systemd/system/patou-{dispatcher.service,worker@.service}.d/90-check.conf
systemctl daemon-reload
configure_standard
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up
since=$(mark)
for _ in {1..20}; do curl --silent --location --fail --output /dev/null http://127.0.0.1:7286/hello || fail "no response"; done
expect "records of twenty successful requests" "$(records | jq -c .MESSAGE)" ''
mark_set_standard
