package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
)

// hook is a program at a cgroup. Its name is that of the pin.
type hook struct {
	name    string
	program *ebpf.Program
	attach  ebpf.AttachType
	cgroup  string
}

// hooks returns what is attached to the cgroups in the order in which it must be: whoever
// undoes or completes what another program did comes before it.
func (d *Datapath) hooks() []hook {
	p, pods, node := &d.objects.MeshPrograms, d.cfg.WorkloadsCgroup, d.cfg.NodeCgroup
	return []hook{
		{"sockops_node", p.SockopsNode, ebpf.AttachCGroupSockOps, node},
		{"sockops_pod", p.SockopsPod, ebpf.AttachCGroupSockOps, pods},
		{"sock_release", p.SockRelease, ebpf.AttachCgroupInetSockRelease, pods},
		{"recvmsg4", p.Recvmsg4, ebpf.AttachCGroupUDP4Recvmsg, pods},
		{"recvmsg6", p.Recvmsg6, ebpf.AttachCGroupUDP6Recvmsg, pods},
		{"getpeername4", p.Getpeername4, ebpf.AttachCgroupInet4GetPeername, pods},
		{"getpeername6", p.Getpeername6, ebpf.AttachCgroupInet6GetPeername, pods},
		{"post_bind4", p.PostBind4, ebpf.AttachCGroupInet4PostBind, pods},
		{"post_bind6", p.PostBind6, ebpf.AttachCGroupInet6PostBind, pods},
		{"sendmsg4", p.Sendmsg4, ebpf.AttachCGroupUDP4Sendmsg, pods},
		{"sendmsg6", p.Sendmsg6, ebpf.AttachCGroupUDP6Sendmsg, pods},
		{"connect4", p.Connect4, ebpf.AttachCGroupInet4Connect, pods},
		{"connect6", p.Connect6, ebpf.AttachCGroupInet6Connect, pods},
	}
}

const (
	nodePin      = "inbound_node"
	podPinPrefix = "inbound_pod_"

	hostPinPrefix = "host_"
)

// Attach puts the programs into the pinned links of an earlier process and makes
// the links that are absent. Call it once the maps hold a full state.
//
// Links in namespaces and at interfaces are moved too; those whose namespace or
// interface is gone are removed, and so are the maps of older layouts.
func (d *Datapath) Attach() error {
	for _, h := range d.hooks() {
		if err := d.attachCgroup(h); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", h.name, h.cgroup, err)
		}
	}
	links, err := pins(filepath.Join(d.cfg.Dir, linksDir))
	if err != nil {
		return err
	}
	for _, path := range links {
		var program *ebpf.Program
		switch name := filepath.Base(path); {
		case name == nodePin:
			program = d.objects.InboundNode
		case strings.HasPrefix(name, podPinPrefix) && !strings.HasSuffix(name, unfinished):
			program = d.objects.InboundPod
		case strings.HasPrefix(name, hostPinPrefix) && !strings.HasSuffix(name, unfinished):
			program = d.objects.HostIngress
		default:
			continue
		}
		if err := moveLink(path, program); err != nil {
			return fmt.Errorf("replace the program of %s: %w", path, err)
		}
	}
	return d.removeOldMaps()
}

// AttachNode attaches the program that hands connections to Gateways' addresses
// to their listeners, in the namespace of the descriptor.
func (d *Datapath) AttachNode(netns int) error {
	if err := d.attachNetns(nodePin, netns, d.objects.InboundNode); err != nil {
		return fmt.Errorf("attach the gateways' program to the node's namespace: %w", err)
	}
	return nil
}

// AttachPod attaches the inbound program in a workload's namespace. cookie is the
// namespace's cookie.
func (d *Datapath) AttachPod(cookie uint64, netns int) error {
	if err := d.attachNetns(podPin(cookie), netns, d.objects.InboundPod); err != nil {
		return fmt.Errorf("attach the inbound program to namespace %d: %w", cookie, err)
	}
	return nil
}

// DetachPod detaches the inbound program from the namespace with the cookie. It is
// no error if nothing is attached.
func (d *Datapath) DetachPod(cookie uint64) error { return d.detach(podPin(cookie)) }

func (d *Datapath) detach(pin string) error {
	path := d.linkPin(pin)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return removeLink(path)
}

// AttachHost attaches the program for what a workload sends to the node's end of its
// veth pair. cookie is that of the workload's namespace; the interface is one of
// the calling thread's namespace. It is link.ErrNotSupported before Linux 6.6, where
// HostProgramFD is for a classifier.
func (d *Datapath) AttachHost(cookie uint64, ifindex int) error {
	if err := d.attachTCX(d.linkPin(hostPin(cookie)), ifindex); err != nil {
		return fmt.Errorf("attach the program for packets to interface %d: %w", ifindex, err)
	}
	return nil
}

func (d *Datapath) attachTCX(path string, ifindex int) error {
	old, err := openLink(path)
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return fmt.Errorf("query the pinned link: %w", err)
		}
		// An interface that is gone has the number 0 here.
		if at := info.TCX(); at != nil && int(at.Ifindex) == ifindex {
			return old.Update(d.objects.HostIngress)
		}
	}
	made, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: d.objects.HostIngress, Attach: ebpf.AttachTCXIngress,
	})
	if err != nil {
		return err
	}
	defer made.Close()
	return pinOver(made, path)
}

// HostProgramFD is the descriptor of the program that AttachHost attaches. The datapath
// keeps it.
func (d *Datapath) HostProgramFD() int { return d.objects.HostIngress.FD() }

// DetachHost undoes AttachHost. It is no error if nothing is attached.
func (d *Datapath) DetachHost(cookie uint64) error { return d.detach(hostPin(cookie)) }

func hostPin(cookie uint64) string { return fmt.Sprintf("%s%d", hostPinPrefix, cookie) }

func podPin(cookie uint64) string { return fmt.Sprintf("%s%d", podPinPrefix, cookie) }

// attachCgroup moves the pinned link of a hook, or makes one. The kernel would let a
// link of one hook take the program of another, so what the link is gets compared first.
func (d *Datapath) attachCgroup(h hook) error {
	path := d.linkPin(h.name)
	var st unix.Stat_t
	if err := unix.Stat(h.cgroup, &st); err != nil {
		return err
	}
	old, err := openLink(path)
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return fmt.Errorf("query the pinned link: %w", err)
		}
		// A cgroup that was removed has the id 0 here.
		if cg := info.Cgroup(); cg != nil && cg.CgroupId == st.Ino && uint32(h.attach) == uint32(cg.AttachType) {
			return old.Update(h.program)
		}
	}
	made, err := link.AttachCgroup(link.CgroupOptions{Path: h.cgroup, Attach: h.attach, Program: h.program})
	if err != nil {
		return err
	}
	defer made.Close()
	return pinOver(made, path)
}

func (d *Datapath) attachNetns(name string, netns int, program *ebpf.Program) error {
	path := d.linkPin(name)
	var st unix.Stat_t
	if err := unix.Fstat(netns, &st); err != nil {
		return err
	}
	old, err := openLink(path)
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return fmt.Errorf("query the pinned link: %w", err)
		}
		if ns := info.NetNs(); ns != nil && uint64(ns.NetnsInode) == st.Ino {
			return old.Update(program)
		}
	}
	made, err := link.AttachNetNs(netns, program)
	if err != nil {
		return err
	}
	defer made.Close()
	return pinOver(made, path)
}

// moveLink replaces the program of a pinned link, or removes the link if what it was
// attached to is gone.
func moveLink(path string, program *ebpf.Program) error {
	l, err := openLink(path)
	if err != nil || l == nil {
		return err
	}
	defer l.Close()
	err = l.Update(program)
	if errors.Is(err, unix.ENOLINK) {
		return os.Remove(path)
	}
	return err
}

// unfinished marks a pin on its way to its name. (The kernel pins no name with a dot.)
const unfinished = "-new"

// pinOver pins a link in place of another one, which is detached by that: both
// work until then.
func pinOver(l link.Link, path string) error {
	staged := path + unfinished
	if err := os.Remove(staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.Pin(staged); err != nil {
		return fmt.Errorf("pin the link: %w", err)
	}
	if err := os.Rename(staged, path); err != nil {
		return fmt.Errorf("pin the link: %w", err)
	}
	return nil
}

// openLink returns a pinned link, nil if there is none.
func openLink(path string) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the pinned link: %w", err)
	}
	return l, nil
}

// removeLink detaches a pinned link, whoever else has it open.
func removeLink(path string) error {
	l, err := openLink(path)
	if err != nil || l == nil {
		return err
	}
	defer l.Close()
	err = l.Detach()
	// What it was attached to may be gone.
	if errors.Is(err, unix.ENOLINK) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("detach %s: %w", path, err)
	}
	return errors.Join(err, os.Remove(path))
}

// removeOldMaps removes the pins of other layouts, which no program uses any more.
func (d *Datapath) removeOldMaps() error {
	paths, err := pins(filepath.Join(d.cfg.Dir, mapsDir))
	if err != nil {
		return err
	}
	current := map[string]bool{}
	for name := range mapsByName(&d.objects.MeshMaps) {
		current[d.mapPin(name)] = true
	}
	for _, path := range paths {
		if !current[path] {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove a map of an older layout: %w", err)
			}
		}
	}
	return nil
}

// mapsByName returns the maps by their names in the object.
func mapsByName(m *bpf.MeshMaps) map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		if bm, ok := v.Field(i).Interface().(*ebpf.Map); ok {
			out[v.Type().Field(i).Tag.Get("ebpf")] = bm
		}
	}
	return out
}

// GuardCapture makes the capture ports' program of an IANA protocol number the filter
// of a socket.
func (d *Datapath) GuardCapture(protocol uint8, fd int) error {
	program := d.objects.CaptureTcp
	if protocol == unix.IPPROTO_UDP {
		program = d.objects.CaptureUdp
	}
	return os.NewSyscallError("setsockopt SO_ATTACH_BPF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, program.FD()))
}
