package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// Restore takes over the workloads that an earlier agent left running, without
// touching their traffic, and removes those that are damaged or whose owner is gone,
// and pieces that belong to no workload. Until Activate, the restored ones have no
// sockets. Call it once, before Add; what could not be removed is in the error, and
// the registry works nevertheless.
func (r *Registry) Restore(ctx context.Context) error {
	records, damaged, err := readRecords(r.recordDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range damaged {
		r.log.Warn("record of workload is damaged", "workload", name.String())
		errs = append(errs, r.sweep(ctx, name))
	}
	for _, rec := range records {
		errs = append(errs, r.restore(ctx, rec))
	}
	errs = append(errs, r.sweepOrphans(ctx))
	r.mu.Lock()
	r.restored = true
	r.mu.Unlock()
	return errors.Join(errs...)
}

func (r *Registry) restore(ctx context.Context, rec *record) error {
	s := rec.Sandbox
	name := s.Spec.Name
	leave, err := r.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	// Paths follow from the name; those of the record may be another run folder's.
	s.NetnsPath = filepath.Join(r.netnsDir, fileName(name))
	s.CgroupPath = filepath.Join(r.cfg.CgroupRoot, fileName(name))
	s.HostInterface = hostInterfaceName(name)
	e := &entry{sandbox: s, record: *rec, restored: true}
	s.ready = rec.Started

	// Whatever comes of it, its addresses and index are in use until its pieces are gone.
	var unusable error
	claimed := s.Addresses[:0:0]
	for _, addr := range s.Addresses {
		pool := r.pool(addr)
		if pool == nil {
			unusable = errors.Join(unusable, fmt.Errorf("address %s: no pool of its family", addr))
		} else if err := pool.Claim(addr); err != nil {
			unusable = errors.Join(unusable, err)
		} else {
			claimed = append(claimed, addr)
		}
	}
	r.mu.Lock()
	if r.byIndex[s.Index] != nil || s.Index == 0 {
		unusable = errors.Join(unusable, fmt.Errorf("index %d is zero or another workload's", s.Index))
	} else {
		r.byIndex[s.Index] = e
	}
	r.workloads[name] = e
	r.mu.Unlock()

	if unusable == nil {
		unusable = r.check(e)
	}
	if unusable == nil && rec.Owner != (owner{}) {
		e.watch, unusable = watchOwner(rec.Owner, func() {
			r.removeIf(context.WithoutCancel(ctx), e, errOwnerGone.Error())
		})
	}
	if unusable == nil {
		s.mu.Lock()
		s.sockets = wantSockets(s.Addresses)
		s.mu.Unlock()
		r.log.Info("workload restored", "workload", name.String(), "index", s.Index)
		return nil
	}
	r.log.Info("workload not restored", "workload", name.String(), "why", unusable)
	s.Addresses = claimed
	return r.remove(ctx, e)
}

// check reports what a restored workload lacks.
func (r *Registry) check(e *entry) error {
	s := e.sandbox
	if e.record.Phase != phaseComplete {
		return fmt.Errorf("its phase is %q", e.record.Phase)
	}
	pod, err := netns.Open(s.NetnsPath)
	if err != nil {
		return err
	}
	defer func() { _ = pod.Close() }()
	cookie, err := pod.Cookie()
	if err != nil {
		return err
	}
	if cookie != s.NetnsCookie {
		return fmt.Errorf("network namespace has cookie %d and not %d", cookie, s.NetnsCookie)
	}
	link, err := r.node.link.LinkByName(s.HostInterface)
	if err != nil {
		return fmt.Errorf("find %s: %w", s.HostInterface, err)
	}
	if link.Attrs().Index != s.HostIfindex {
		return fmt.Errorf("%s has index %d and not %d", s.HostInterface, link.Attrs().Index, s.HostIfindex)
	}
	id, err := cgroupID(s.CgroupPath)
	if err != nil {
		return err
	}
	if id != s.CgroupID {
		return fmt.Errorf("cgroup has number %d and not %d", id, s.CgroupID)
	}
	return nil
}

// Activate makes the sockets that restored workloads still lack and calls OnAdd for
// each of them. A workload that fails is removed; the error joins the reasons. It
// does nothing for workloads that are active already.
func (r *Registry) Activate(ctx context.Context) error {
	r.mu.Lock()
	var names []mesh.Name
	for name, e := range r.workloads {
		if !e.active && e.record.Phase == phaseComplete {
			names = append(names, name)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, name := range names {
		errs = append(errs, r.reactivate(ctx, name))
	}
	return errors.Join(errs...)
}

func (r *Registry) reactivate(ctx context.Context, name mesh.Name) error {
	leave, err := r.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	e := r.lookup(name)
	if e == nil || e.active || e.record.Phase != phaseComplete {
		return nil
	}
	err = r.reopen(e.sandbox)
	if err == nil {
		err = r.activate(ctx, e)
	}
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("take over workload %s: %w", name, err), r.remove(context.WithoutCancel(ctx), e))
}

func (r *Registry) reopen(s *Sandbox) error {
	pod, err := netns.Open(s.NetnsPath)
	if err != nil {
		return err
	}
	defer func() { _ = pod.Close() }()
	s.mu.Lock()
	defer s.mu.Unlock()
	return openSockets(pod, s.sockets)
}

// sweepOrphans removes namespaces, cgroups, Pods and veth pairs that belong to no
// workload.
func (r *Registry) sweepOrphans(ctx context.Context) error {
	orphans := make(map[mesh.Name]bool)
	note := func(file string) {
		if name, ok := parseFileName(file); ok && r.lookup(name) == nil {
			orphans[name] = true
		}
	}
	for _, dir := range []string{r.netnsDir, r.cfg.CgroupRoot} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("look for remains of workloads: %w", err)
		}
		for _, entry := range entries {
			note(entry.Name())
		}
	}
	pods, err := filepath.Glob(filepath.Join(r.podDir, "*"+podSuffix))
	if err != nil {
		return fmt.Errorf("look for remains of workloads: %w", err)
	}
	for _, pod := range pods {
		note(filepath.Base(pod[:len(pod)-len(podSuffix)]))
	}
	var errs []error
	for name := range orphans {
		r.log.Warn("removing remains of an unknown workload", "workload", name.String())
		errs = append(errs, r.sweep(ctx, name))
	}
	interfaces, err := r.node.hostInterfaces()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	r.mu.Lock()
	known := make(map[string]bool)
	for name := range r.workloads {
		known[hostInterfaceName(name)] = true
	}
	r.mu.Unlock()
	for _, name := range interfaces {
		if !known[name] {
			r.log.Warn("removing a veth pair of an unknown workload", "interface", name)
			errs = append(errs, r.node.disconnect(name))
		}
	}
	return errors.Join(errs...)
}

// sweep removes whatever there is of a workload without a usable record.
func (r *Registry) sweep(ctx context.Context, name mesh.Name) error {
	s := &Sandbox{
		Spec:          Spec{Name: name},
		NetnsPath:     filepath.Join(r.netnsDir, fileName(name)),
		CgroupPath:    filepath.Join(r.cfg.CgroupRoot, fileName(name)),
		HostInterface: hostInterfaceName(name),
	}
	if err := errors.Join(removeFile(r.podFile(name)), emptyCgroup(ctx, s.CgroupPath)); err != nil {
		return fmt.Errorf("remove remains of workload %s: %w", name, err)
	}
	if err := r.takeApartPieces(s); err != nil {
		return fmt.Errorf("remove remains of workload %s: %w", name, err)
	}
	return removeFile(filepath.Join(r.recordDir, fileName(name)+recordSuffix))
}
