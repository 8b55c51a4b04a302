package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sluice-mesh/sluice/mesh"
)

// phase says how far the making of a workload has come.
type phase string

const (
	// phaseMaking and phaseRemoving workloads have some of their pieces; a restarted
	// agent removes them.
	phaseMaking   phase = "making"
	phaseComplete phase = "complete"
	phaseRemoving phase = "removing"
)

// record is what is on disk about a workload, from before its first piece is made
// until after its last is gone.
type record struct {
	Phase   phase    `json:"phase"`
	Started bool     `json:"started,omitempty"`
	Owner   owner    `json:"owner"`
	Sandbox *Sandbox `json:"sandbox"`
}

const recordSuffix = ".json"

// fileName is the workload's name as part of a path. Neither part of a name can
// hold an underscore.
func fileName(name mesh.Name) string { return name.Namespace + "_" + name.Name }

// parseFileName is the inverse of fileName.
func parseFileName(file string) (mesh.Name, bool) {
	namespace, name, found := strings.Cut(file, "_")
	n := mesh.Name{Namespace: namespace, Name: name}
	return n, found && isDNSLabel(namespace) && isDNSSubdomain(name) && len(name) <= maxNameBytes
}

func writeRecord(dir string, rec *record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode record of workload %s: %w", rec.Sandbox.Spec.Name, err)
	}
	return replaceFile(filepath.Join(dir, fileName(rec.Sandbox.Spec.Name)+recordSuffix), data)
}

// readRecords returns the records of dir. Names whose record cannot be read are
// returned as damaged.
func readRecords(dir string) (records []*record, damaged []mesh.Name, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read workload records: %w", err)
	}
	for _, entry := range entries {
		base, isRecord := strings.CutSuffix(entry.Name(), recordSuffix)
		name, ok := parseFileName(base)
		if !isRecord || !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, nil, fmt.Errorf("read workload records: %w", err)
		}
		rec := new(record)
		if err := json.Unmarshal(data, rec); err != nil || rec.Sandbox == nil || rec.Sandbox.Spec.Name != name {
			damaged = append(damaged, name)
			continue
		}
		records = append(records, rec)
	}
	return records, damaged, nil
}

// replaceFile writes a file so that readers see the old content or the new. The
// temporary file's name begins with a dot, which watchers of folders leave out.
func replaceFile(path string, data []byte) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// indexes hands out workload indexes, each once. A ceiling on disk, raised in steps
// of indexStep, keeps those of an earlier agent from being handed out again.
type indexes struct {
	path          string
	next, ceiling mesh.WorkloadIndex
}

const indexStep = 256

func openIndexes(path string) (*indexes, error) {
	x := &indexes{path: path, next: 1, ceiling: 1}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read workload indexes: %w", err)
	}
	ceiling, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	if err != nil || ceiling == 0 {
		return nil, fmt.Errorf("read workload indexes: %s does not hold a number", path)
	}
	x.next, x.ceiling = mesh.WorkloadIndex(ceiling), mesh.WorkloadIndex(ceiling)
	return x, nil
}

// take returns an index for which used is false.
func (x *indexes) take(used func(mesh.WorkloadIndex) bool) (mesh.WorkloadIndex, error) {
	for {
		if x.next == x.ceiling {
			ceiling := x.ceiling + indexStep
			if ceiling < x.ceiling { // All 32 bits used up: from the start again.
				x.next, ceiling = 1, 1+indexStep
			}
			if err := replaceFile(x.path, []byte(strconv.FormatUint(uint64(ceiling), 10))); err != nil {
				return 0, err
			}
			x.ceiling = ceiling
		}
		index := x.next
		x.next++
		if !used(index) {
			return index, nil
		}
	}
}
