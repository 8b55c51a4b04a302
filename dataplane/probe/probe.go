package probe

import "errors"

// Feature is an ability of the machine.
type Feature struct {
	Name string `json:"name"`
	// Needed features are those without which the node does not start.
	Needed bool `json:"needed"`
	Have   bool `json:"have"`
	// Detail says what was found, or what uses the feature.
	Detail string `json:"detail,omitempty"`
}

// Config names the places that are looked at. Empty fields are found in /proc/self/mounts.
type Config struct {
	Cgroup string // a folder on a cgroup v2
	BPFFS  string // a folder on, or the mount point of, a bpffs
}

// Features returns every ability that is asked for, needed ones first.
func Features(cfg Config) []Feature { return nil }

// Check returns nil if all needed features are there, else an error of one line that names
// what is missing and how to get it.
func Check(cfg Config) error { return errors.New("not written yet") }
