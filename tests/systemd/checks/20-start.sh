# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# The packaged configuration, enabled and started, serves clients.
. /checks/lib.sh
ensure_installed
if [ -e /etc/patou/patou.toml.dpkg-new ]; then fail "a conffile is left behind"; fi
systemctl stop patou 2>/dev/null || true
mark_set_changed
dpkg --fsys-tarfile "$deb" | tar --extract --directory / ./etc/patou/patou.toml

systemctl enable --quiet patou
t0=$(micros)
systemctl start patou &
starting=$!
wait_for 20 "the first request gets a response" responds_on_unix
figure "systemctl start patou to the first response: $(millis_since "$t0") ms"
wait "$starting" || fail "systemctl start patou"
figure "systemctl start patou: $(millis_since "$t0") ms"

expect "patou.service" "$(systemctl is-active patou.service)" active
wait_for 10 "the set is up" all_up
for part in patou-ipc patou-watchdog patou-dispatcher patou-worker@default-{1,2}; do
    expect "$part.service" "$(systemctl is-active "$part.service")" active
done
systemctl --no-pager --lines=0 status 'patou*' >/dev/null || fail "systemctl status 'patou*'"

# The units, with the drop-ins that the start has published for the packaged configuration.
units=()
for file in $(dpkg -L patou | grep -E '/systemd/system/.*\.(service|socket|slice)$'); do
    name=${file##*/}
    case $name in
    patou-worker@*) name=${name/@/@default-1} ;;
    patou-listener@*) name=$(listener_socket /run/patou/lease.sock) ;;
    esac
    units+=("$name")
done
complaints=$(systemd-analyze verify --man=no --generators=yes "${units[@]}" 2>&1) || fail "systemd-analyze verify: $complaints"
[ -z "$complaints" ] || fail "systemd-analyze verify: $complaints"
log "${#units[@]} units verified"

# Members of the group are served, other users are not.
useradd --groups patou --no-create-home member 2>/dev/null || true
useradd --no-create-home stranger 2>/dev/null || true
run_as() { setpriv --reuid "$1" --regid "$1" --init-groups "${@:2}"; }
lease=$(run_as member curl --silent --fail --data '' --unix-socket /run/patou/lease.sock http://localhost/.patou/lease) ||
    fail "a member of group patou gets no lease"
jq -e '.worker and .address and .token and .expires_ms' <<<"$lease" >/dev/null || fail "not a lease: $lease"
[[ $(run_as member patou call --data hello /x) == *hello* ]] || fail "a member of group patou is not served"
expect_failure "a lease for a stranger" run_as stranger curl --silent --data '' --unix-socket /run/patou/lease.sock http://localhost/.patou/lease
expect "the response to a member of group patou" "$(run_as member curl --silent --data hello --unix-socket /run/patou/http.sock http://localhost/)" hello
run_as stranger patou status >/dev/null 2>&1 || log "note: patou status does not work for strangers"

# Each part runs as its user.
expect "the user of the watchdog" "$(ps -o user:20= -p "$(main_pid patou-watchdog)")" patou-watchdog
expect "the user of the dispatcher" "$(ps -o user:20= -p "$(main_pid patou-dispatcher)")" patou
expect "the user of worker 1" "$(ps -o user:20= -p "$(main_pid patou-worker@default-1)")" patou-worker

# Each part sets a status text.
for part in patou-watchdog patou-dispatcher patou-worker@default-1; do
    text=$(show "$part.service" StatusText)
    [ -n "$text" ] || fail "$part.service sets no STATUS="
    log "$part: $text"
done

# No unit failed, and there is no message at level error.
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
errors=$(journalctl --quiet --boot --priority=err --output=short --no-hostname --grep patou || true)
[ -z "$errors" ] || fail "errors in the journal: $errors"

# Memory at rest.
for part in patou-watchdog patou-dispatcher patou-worker@default-1; do
    pss=$(awk '/^Pss:/ { print $2 }' "/proc/$(main_pid "$part")/smaps_rollup")
    figure "PSS of $part: $pss kB"
done
