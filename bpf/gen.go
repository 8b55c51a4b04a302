// Package bpf holds the kernel programs of a node: their C sources, the object
// compiled from them, and Go's view of its programs, maps and types.
//
// It owns nothing at run time and has no logic; dataplane/loader brings the
// programs into the kernel. mesh.bpf.c is the object of all that is attached:
// socket.h, sockops.h, inbound.h, host.h and capture.h hold the hooks, include/ what
// they share. destroy.bpf.c is what older kernels cannot load.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type event -type layout -type capture_port -type verdict -type hook -type service_flags -type membership -type packet_count -type frontend -type addr Mesh mesh.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type victim -type ended Destroy destroy.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
