# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# The package installs the set and does not start it.
. /checks/lib.sh
ensure_installed

for user in patou patou-watchdog patou-worker; do
    getent passwd "$user" >/dev/null || fail "user $user does not exist"
    expect "the group of $user" "$(id --group --name "$user")" "$user"
done
expect "patou.service" "$(systemctl is-enabled patou.service || true)" disabled
expect "patou.service" "$(systemctl is-active patou.service || true)" inactive
assert_nothing_left
expect "/run/patou" "$(stat --format '%a %U:%G' /run/patou)" "751 patou:patou"
expect "/run/patou-applied" "$(stat --format '%a %U:%G' /run/patou-applied)" "755 root:root"

patou check >/dev/null || fail "patou check rejects the packaged configuration"
if grep -vE '^ *#' /etc/patou/patou.toml | grep -E '^address *= *"[^u]'; then
    fail "the packaged configuration listens on the network"
fi

figure "installed size: $(dpkg-query -W -f '${Installed-Size}' patou) kB, of which /usr/bin/patou $(($(stat --format %s /usr/bin/patou) / 1024)) kB"
