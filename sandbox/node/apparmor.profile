# What a job may do, in AppArmor's words, beside capabilities, namespaces and system calls. Loaded by the node when it starts.
abi <abi/3.0>,

#include <tunables/global>

profile sealrig-job flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>

  # No capability is granted: a job has none, and a way to one ends here.
  # Files are the image's and the lease's own; what must stay closed follows.
  file,

  network unix,
  network inet stream,
  network inet dgram,
  network inet6 stream,
  network inet6 dgram,
  network netlink raw,
  deny network packet,
  deny network alg,
  deny network vsock,

  deny mount,
  deny remount,
  deny umount,
  deny pivot_root,
  deny ptrace,

  # The engine ends a job; jobs signal only their own.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer=sealrig-job,

  deny @{PROC}/* w,
  deny @{PROC}/{acpi,asound,bus,driver,fs,irq,scsi,sys,tty}/** w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny @{PROC}/kallsyms rwklx,
  deny @{PROC}/kmsg rwklx,
  deny @{PROC}/keys rwklx,
  deny @{PROC}/timer_list rwklx,
  deny @{PROC}/sched_debug rwklx,
  deny @{PROC}/driver/nvidia/capabilities/** rwklx,

  deny /sys/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/kernel/debug/** rwklx,
  deny /sys/kernel/tracing/** rwklx,
  deny /sys/fs/bpf/** rwklx,

  deny /dev/mem rwklx,
  deny /dev/kmem rwklx,
  deny /dev/port rwklx,
  deny /dev/kmsg rwklx,
  deny /dev/nvidia-modeset rwklx,
  deny /dev/nvidia-uvm-tools rwklx,
  deny /dev/nvidia-caps/** rwklx,
  deny /dev/dri/** rwklx,

  deny /{,var/}run/docker.sock rwklx,
  deny /{,var/}run/containerd/** rwklx,
  deny /{,var/}run/nvidia-persistenced/** rwklx,
}
