# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Remove stops the set and keeps the configuration; purge leaves nothing but the accounts.
. /checks/lib.sh
need_started
systemctl enable --quiet patou
apt() { apt-get --quiet --quiet --yes "$@" >"$check_dir/apt" 2>&1 || fail "apt-get $*: $(cat "$check_dir/apt")"; }

apt remove patou
nothing_is_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
[ -e /etc/patou/patou.toml ] || fail "remove has deleted the configuration"
[ ! -e /usr/bin/patou ] || fail "remove has left /usr/bin/patou"
found=$(find /run/systemd/generator* -name '*patou*' 2>/dev/null || true)
[ -z "$found" ] || fail "left: $found"

# The edited configuration is there again, and so is what was enabled; it is not started.
apt install "$deb"
default_kept=$(grep -c 7286 /etc/patou/patou.toml || true)
[ "$default_kept" -ge 1 ] || fail "the edited configuration is gone"
nothing_is_left
systemctl start patou || fail "systemctl start patou after a second installation"
wait_for 10 "the set is up" all_up

# Purge in one go, while it runs.
apt purge patou
nothing_is_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
list_files >"$check_dir/files-after"
# Accounts stay, as Debian has it: files could still belong to them. The checks have made some of their own.
left=$(diff /var/tmp/files-before "$check_dir/files-after" | grep '^[<>]' | grep -vE ' /etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/var/lib/systemd/(timers|catalog|random-seed)|\.pwd\.lock$|/var/mail' || true)
[ -z "$left" ] || fail "purge leaves, or has taken: $left"
for user in patou patou-watchdog patou-worker; do
    getent passwd "$user" >/dev/null || say "note: purge has removed the user $user"
done
found=$(find / -xdev \( -path /proc -o -path /sys \) -prune -o \( -nouser -o -nogroup \) -print 2>/dev/null | head)
[ -z "$found" ] || fail "of nobody: $found"
for name in patou patou-ipc patou-dispatcher patou-watchdog; do
    expect "what systemd knows of $name.service" "$(show "$name.service" LoadState)" not-found
done
