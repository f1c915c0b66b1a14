say "hello $PHASE from $(hostname), $(systemctl is-system-running) $(cut -d' ' -f1 /proc/uptime) $(cat /proc/self/cgroup)"
[ $PHASE = 3 ] || reboot_here
