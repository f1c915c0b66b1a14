# What the checks share; sourced before each of them, inside the machine, with `set -euo pipefail`.
# A check ends with 0 if all holds. It may `reboot_here`: it is then called again with PHASE=2 (3, ...).
say() { printf '%s\n' "$*"; }
reboot_here() { exit 77; }
