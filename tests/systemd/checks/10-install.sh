# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Installed, and not started: nothing that was not asked for.
. /checks/lib.sh
need_installed

for user in patou patou-watchdog patou-worker; do
    getent passwd "$user" >/dev/null || fail "there is no user $user"
    expect "the group of $user" "$(id --group --name "$user")" "$user"
done
expect "patou.service" "$(systemctl is-enabled patou.service || true)" disabled
expect "patou.service" "$(systemctl is-active patou.service || true)" inactive
nothing_is_left
expect "/run/patou" "$(stat --format '%a %U:%G' /run/patou)" "751 patou:patou"
expect "/run/patou-applied" "$(stat --format '%a %U:%G' /run/patou-applied)" "755 root:root"

patou check >/dev/null || fail "patou check refuses the packaged configuration"
if grep -vE '^ *#' /etc/patou/patou.toml | grep -E '^address *= *"[^u]'; then
    fail "the packaged configuration listens on the network"
fi

# Units, and their instances as the generator of the packaged configuration makes them.
units=()
for file in $(dpkg -L patou | grep -E '/systemd/system/.*\.(service|socket|slice)$'); do
    name=${file##*/}
    case $name in
    patou-worker@*) name=${name/@/@default-1} ;;
    *@*) name=${name/@/@0} ;;
    esac
    units+=("$name")
done
complaints=$(systemd-analyze verify --man=no --generators=yes "${units[@]}" 2>&1) || fail "systemd-analyze verify: $complaints"
[ -z "$complaints" ] || fail "systemd-analyze verify: $complaints"
say "${#units[@]} units verified"
figure "installed size: $(dpkg-query -W -f '${Installed-Size}' patou) kB, of which /usr/bin/patou $(($(stat --format %s /usr/bin/patou) / 1024)) kB"
