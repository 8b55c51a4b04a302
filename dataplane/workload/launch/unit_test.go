package launch

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestFilter interprets the seccomp program.
func TestFilter(t *testing.T) {
	const allow, eperm, enosys = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	defaults, err := chooseCapabilities(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	admin := capabilities{Bounding: defaults.Bounding | 1<<unix.CAP_SYS_ADMIN}
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	for _, test := range []struct {
		name   string
		caps   capabilities
		arch   uint32
		number uint32
		arg0   uint32
		want   uint32
	}{
		{"read", defaults, arch, unix.SYS_READ, 3, allow},
		{"other architecture", defaults, unix.AUDIT_ARCH_I386, unix.SYS_READ, 3, unix.SECCOMP_RET_KILL_PROCESS},
		{"thread", defaults, arch, unix.SYS_CLONE, unix.CLONE_VM | unix.CLONE_THREAD, allow},
		{"user namespace", defaults, arch, unix.SYS_CLONE, unix.CLONE_NEWUSER, eperm},
		{"time namespace", defaults, arch, unix.SYS_UNSHARE, unix.CLONE_NEWTIME, eperm},
		{"own files", defaults, arch, unix.SYS_UNSHARE, unix.CLONE_FILES, allow},
		{"clone3", defaults, arch, unix.SYS_CLONE3, 0, enosys},
		{"bpf", defaults, arch, unix.SYS_BPF, 0, eperm},
		{"setns", defaults, arch, unix.SYS_SETNS, 0, eperm},
		{"socket", defaults, arch, unix.SYS_SOCKET, unix.AF_INET6, allow},
		{"vsock", defaults, arch, unix.SYS_SOCKET, unix.AF_VSOCK, unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		{"admin's namespace", admin, arch, unix.SYS_UNSHARE, unix.CLONE_NEWNET, allow},
		{"admin's clone3", admin, arch, unix.SYS_CLONE3, 0, allow},
		{"admin's setns", admin, arch, unix.SYS_SETNS, 0, allow},
		{"admin's bpf", admin, arch, unix.SYS_BPF, 0, eperm},
	} {
		program, err := filter(test.caps)
		if err != nil {
			t.Fatal(err)
		}
		if got := interpret(t, program, test.number, test.arch, test.arg0); got != test.want {
			t.Errorf("%s: %#x, want %#x", test.name, got, test.want)
		}
	}
	if runtime.GOARCH == "amd64" {
		program, _ := filter(defaults)
		if got := interpret(t, program, x32Bit|unix.SYS_BPF, arch, 0); got != enosys {
			t.Errorf("x32: %#x", got)
		}
	}
}

// interpret runs the program on seccomp_data. The interpreter loads big-endian words
// as for packets, so the fields are laid out so.
func interpret(t *testing.T, program []unix.SockFilter, number, arch, arg0 uint32) uint32 {
	t.Helper()
	var instructions []bpf.Instruction
	for _, raw := range program {
		instructions = append(instructions, bpf.RawInstruction{Op: raw.Code, Jt: raw.Jt, Jf: raw.Jf, K: raw.K}.Disassemble())
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	for offset, value := range map[int]uint32{offNumber: number, offArch: arch, offArg0: arg0} {
		for i := range 4 {
			data[offset+i] = byte(value >> (24 - 8*i))
		}
	}
	result, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(result)
}

func TestLookupUser(t *testing.T) {
	for _, test := range []struct {
		text     string
		uid, gid int
		name     string
	}{
		{"root", 0, 0, "root"},
		{"0", 0, 0, "root"},
		{"nobody", 65534, 65534, "nobody"},
		{"nobody:0", 65534, 0, "nobody"},
		{"nobody:root", 65534, 0, "nobody"},
		{"54321", 54321, 54321, ""},
		{"54321:9", 54321, 9, ""},
	} {
		u, err := lookupUser(test.text)
		if err != nil || u.UID != test.uid || u.GID != test.gid || u.Name != test.name {
			t.Errorf("%q: %+v, %v", test.text, u, err)
		}
	}
	for _, bad := range []string{":", "no-such-user", "0:no-such-group", "-1", "4294967295", "4294967296", "0:-1", "1.5"} {
		if u, err := lookupUser(bad); err == nil {
			t.Errorf("%q: %+v", bad, u)
		}
	}
}

func TestLastOfEach(t *testing.T) {
	got := lastOfEach([]string{"A=1", "HOME=/x", "A=2", "HOME=/y", "odd"})
	if !slices.Equal(got, []string{"A=2", "HOME=/y", "odd"}) {
		t.Error(got)
	}
}

func TestFindExecutable(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"good/tool": 0o755, "plain/tool": 0o644} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := func(dirs ...string) []string {
		for i, d := range dirs {
			if d != "." {
				dirs[i] = filepath.Join(dir, d)
			}
		}
		return []string{"PATH=" + strings.Join(dirs, ":")}
	}
	for _, test := range []struct {
		name string
		env  []string
		want string
		code int
	}{
		{"tool", path("missing", "plain", "good"), filepath.Join(dir, "good/tool"), 0},
		{"tool", path("plain"), "", ExitNotExecutable},
		{"tool", path("missing", "."), "", ExitNotFound},
		{"tool", nil, "", ExitNotFound},
		{"./tool", path("good"), "./tool", 0},
	} {
		got, err := findExecutable(test.name, test.env)
		if got != test.want || err != nil && exitCodeOfStart(err) != test.code {
			t.Errorf("%s in %v: %q, %v", test.name, test.env, got, err)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	own, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own))
	f.Add(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` + "\n")
	f.Add(`36 35 98:0 / /a\ rw - bpf`)
	f.Add(`36 35 98:0 / /a\400 rw - bpf none rw`)
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := parseMountinfo(text)
		if err != nil {
			return
		}
		if want := strings.Count(strings.TrimSuffix(text, "\n"), "\n") + 1; text != "" && len(mounts) != want {
			t.Errorf("%d mounts of %d lines", len(mounts), want)
		}
		for _, m := range mounts {
			if m.path == "" || m.fsType == "" {
				t.Errorf("mount %+v", m)
			}
		}
	})
}

func TestMountinfoPath(t *testing.T) {
	mounts, err := parseMountinfo(`36 35 98:0 /mnt1 /mnt\0402\134\011 rw,noatime master:1 - bpf /dev/root rw` + "\n")
	if err != nil || len(mounts) != 1 || mounts[0].path != "/mnt 2\\\t" || mounts[0].fsType != "bpf" {
		t.Errorf("%+v, %v", mounts, err)
	}
}
