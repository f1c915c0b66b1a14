# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Removal stops the set and keeps the configuration; purge leaves only the accounts, and what the administrator has
# added.
. /checks/lib.sh
ensure_started
systemctl enable --quiet patou
apt() { apt-get --quiet --quiet --yes "$@" >"$check_dir/apt" 2>&1 || fail "apt-get $*: $(cat "$check_dir/apt")"; }

apt remove patou
assert_nothing_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
[ -e /etc/patou/patou.toml ] || fail "remove has deleted the configuration"
[ ! -e /usr/bin/patou ] || fail "remove has left /usr/bin/patou"
found=$(find /run/systemd/generator* -name '*patou*' 2>/dev/null || true)
[ -z "$found" ] || fail "left behind: $found"

# After a new installation the edited configuration is in place, and the set is not started.
apt install "$deb"
default_kept=$(grep -c 7286 /etc/patou/patou.toml || true)
[ "$default_kept" -ge 1 ] || fail "the edited configuration is gone"
assert_nothing_left
systemctl start patou || fail "systemctl start patou after a second installation"
wait_for 10 "the set is up" all_up

# Purge while the set runs, with a pool of the administrator.
cat >/etc/patou/patou.d/own.toml <<'EOF'
[[pool]]
name = "own"
workers = 1
address = "unix:/run/patou/own-{n}.sock"
EOF
sed -i 's#^runtime_dir = .*#&\ninclude = ["patou.d/*.toml"]#' /etc/patou/patou.toml
systemctl reload patou || fail "a reload with a file in patou.d"
wait_for 10 "the pool of the included file is up" worker_serves own/1
apt purge patou
[ -e /etc/patou/patou.d/own.toml ] || fail "the purge has deleted a file of the administrator"
rm -r /etc/patou
assert_nothing_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
list_files >"$check_dir/files-after"
# Accounts stay, as Debian packages do it: files could still belong to them. The checks created some accounts too.
left=$(diff /var/tmp/files-before "$check_dir/files-after" | grep '^[<>]' | grep -vE ' /etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/var/lib/systemd/(timers|catalog|random-seed)|\.pwd\.lock$|/var/mail' || true)
[ -z "$left" ] || fail "files left or removed by the purge: $left"
for user in patou patou-watchdog patou-worker; do
    getent passwd "$user" >/dev/null || log "note: purge has removed the user $user"
done
found=$(find / -xdev \( -path /proc -o -path /sys \) -prune -o \( -nouser -o -nogroup \) -print 2>/dev/null | head)
[ -z "$found" ] || fail "files without an owner: $found"
for name in patou patou-ipc patou-dispatcher patou-watchdog; do
    expect "the load state of $name.service" "$(show "$name.service" LoadState)" not-found
done
