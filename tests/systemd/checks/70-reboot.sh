# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# An enabled set starts at boot with the configuration in /etc; with an invalid one it fails and logs the reason.
. /checks/lib.sh

case $PHASE in
1)
    ensure_started
    systemctl enable --quiet patou
    # Without a reload: this applies at the next boot.
    # Few connections: a low limit of open files in this machine is worth a warning.
    { base_configuration && default_pool 4 && printf '\n[front]\nconnections = 1000\n'; } | configure
    request_reboot
    ;;
2)
    expect "the machine" "$(systemctl is-system-running --wait || true)" running
    expect "patou.service" "$(systemctl is-active patou)" active
    wait_for 10 "the set is up" all_up
    responds_on_unix || fail "not serving on the Unix socket"
    responds_on_tcp || fail "not serving on TCP"
    expect "workers" "$(patou status --json | jq '.pools[0].workers | length')" 4
    errors=$(journalctl --quiet --boot --priority=warning --identifier=patou --identifier=systemctl --output=short || true)
    [ -z "$errors" ] || fail "warnings in the journal of this boot: $errors"
    # The journal shows the shutdown of the previous boot: nothing had to be killed.
    killed=$(journalctl --quiet --boot=-1 --output=cat --grep 'patou.*(timed out|SIGKILL|Failed with result)' --lines=5 || true)
    log "kills at shutdown: ${killed:-none}"
    echo 'workers = "many"' | configure
    request_reboot
    ;;
3)
    expect "the machine" "$(systemctl is-system-running --wait || true)" degraded
    expect "patou.service" "$(systemctl is-active patou || true)" failed
    journalctl --quiet --boot --unit=patou.service --output=cat | has '/etc/patou/patou.toml' ||
        fail "the journal does not name the file: $(journalctl --boot --unit=patou.service)"
    assert_nothing_left_except patou.service
    configure_standard
    systemctl start patou || fail "systemctl start patou after a correction of the configuration"
    wait_for 10 "the set is up" all_up
    responds_on_tcp || fail "not serving"
    systemctl disable --quiet patou
    mark_set_standard
    ;;
esac
