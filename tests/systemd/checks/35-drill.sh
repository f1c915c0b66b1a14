# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# A drill on the installed set: parts, the watchdog included, are killed, frozen and restarted through systemctl,
# segments are corrupted, and the record of the handlers is compared with the responses that the clients got.
. /checks/lib.sh
ensure_installed
mark_set_changed
for pool in book warm talk; do
    mkdir -p "/etc/systemd/system/patou-worker@$pool-.service.d"
    printf '[Service]\nStateDirectory=patou-drill\n' >"/etc/systemd/system/patou-worker@$pool-.service.d/drill.conf"
done
record='["/usr/bin/patou", "record", "/var/lib/patou-drill/records"]'
bounds='request_timeout = "5s"\nqueue_timeout = "5s"\ndrain_timeout = "2s"\n'
{
    base_configuration
    # shellcheck disable=SC2059 # the formats are the lines of a pool
    default_pool 3 '"echo"' "$(printf "$bounds")"
    printf '\n[[listener]]\naddress = "127.0.0.1:7287"\npool = "book"\n'
    # shellcheck disable=SC2059
    printf "\n[[pool]]\nname = \"book\"\nworkers = 2\naddress = \"127.0.0.1:7390\"\nhandler = { exec = $record }\n$bounds"
    printf '\n[[listener]]\naddress = "127.0.0.1:7289"\npool = "book"\ndelivery = "handoff"\n'
    printf '\n[[listener]]\naddress = "127.0.0.1:7290"\npool = "book"\ndelivery = "handoff"\nproxy_protocol = true\n'
    printf '\n[[listener]]\naddress = "127.0.0.1:7291"\npool = "talk"\ndelivery = "handoff"\n'
    # shellcheck disable=SC2059
    printf "\n[[pool]]\nname = \"talk\"\nworkers = 2\naddress = \"127.0.0.1:7398\"\nhandler = { inetd = $record }\n$bounds"
    printf '\n[[listener]]\naddress = "127.0.0.1:7288"\npool = "warm"\n'
    # shellcheck disable=SC2059
    printf "\n[[pool]]\nname = \"warm\"\nworkers = 2\naddress = \"127.0.0.1:7395\"\nhandler = { coprocess = $record }\n$bounds"
    printf '\n[watchdog]\nprobe_interval = "100ms"\nworker_timeout = "500ms"\ndispatcher_timeout = "1s"\n'
    # This does not test the limit of restarts.
    printf 'restarts = { max = 100000, within = "1s", delay = "10ms", delay_max = "100ms" }\n'
} | configure
systemctl daemon-reload
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up

expect_failure "a drill without --yes" patou drill --config /etc/patou/patou.toml --faults 1
[[ $output == *--yes* ]] || fail "a drill without --yes prints: $output"

# Seeds, and faults for each: PATOU_DRILL=5x200 is a longer drill.
IFS=x read -r seeds faults <<<"${PATOU_DRILL:-2x25}"
for ((seed = 1; seed <= seeds; seed++)); do
    patou drill --config /etc/patou/patou.toml --yes --seed "$seed" --faults "$faults" --pace 3 --json >"$check_dir/report" 2>"$check_dir/messages" ||
        fail "the drill: $(cat "$check_dir/messages"; jq '{violations, skipped}' "$check_dir/report")"
    figure "drill, seed $seed: $(jq -c '[.faults, .faults_per_second, .starts_on_record, (.violations | length)]' "$check_dir/report") (faults, per second, starts on record, violations)"
    jq -r '.by_kind[] | "figure:   \(.kind) of \(.target): \(.count), detected \(.detection.p50_ms // "-")/\(.detection.max_ms // "-") ms, recovered \(.recovery.p50_ms // "-")/\(.recovery.max_ms // "-") ms, longest wait \(.longest_wait_ms) ms"' "$check_dir/report"
    # A machine may lack CAP_SYS_RESOURCE, which limits of open files need.
    expect "faults that could not be injected" "$(jq -c '[.skipped[] | select(test("changing its limits is not permitted") | not)]' "$check_dir/report")" '[]'
    wait_for 20 "the set is up after the drill" all_up
done
systemctl stop patou
assert_nothing_left
rm -r /etc/systemd/system/patou-worker@{book,warm,talk}-.service.d /var/lib/patou-drill
systemctl daemon-reload
