# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Enabled, the set comes up by itself at boot, on what is in /etc; with a wrong configuration it fails, and says why.
. /checks/lib.sh

case $PHASE in
1)
    need_started
    systemctl enable --quiet patou
    # Nobody has reloaded this: it is for the next boot.
    { configuration && default_pool 4; } | configure
    reboot_here
    ;;
2)
    expect "the machine" "$(systemctl is-system-running --wait || true)" running
    expect "patou.service" "$(systemctl is-active patou)" active
    wait_for 10 "the set is up" all_up
    answered || fail "not served on the Unix socket"
    answered_on_tcp || fail "not served on TCP"
    expect "workers" "$(patou status --json | jq '.pools[0].workers | length')" 4
    errors=$(journalctl --quiet --boot --priority=warning --identifier=patou --identifier=systemctl --output=short || true)
    [ -z "$errors" ] || fail "warnings in the journal of this boot: $errors"
    # The journal knows how the last boot ended: everything was stopped, and nothing had to be killed.
    killed=$(journalctl --quiet --boot=-1 --output=cat --grep 'patou.*(timed out|SIGKILL|Failed with result)' --lines=5 || true)
    say "of the shutdown: ${killed:-nothing was killed}"
    echo 'workers = "many"' | configure
    reboot_here
    ;;
3)
    expect "the machine" "$(systemctl is-system-running --wait || true)" degraded
    expect "patou.service" "$(systemctl is-active patou || true)" failed
    journalctl --quiet --boot --unit=patou.service --output=cat | has '/etc/patou/patou.toml' ||
        fail "the journal does not say what is wrong: $(journalctl --boot --unit=patou.service)"
    nothing_is_left_but patou.service
    standard
    systemctl start patou || fail "systemctl start patou after mending the configuration"
    wait_for 10 "the set is up" all_up
    answered_on_tcp || fail "not served"
    systemctl disable --quiet patou
    keep_set
    ;;
esac
