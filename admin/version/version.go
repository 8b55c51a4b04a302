// Package version tells which build of Sluice this is. It reads what the Go
// linker recorded; nothing is configured and nothing fails.
package version

import (
	"runtime"
	"runtime/debug"
	"sync"
)

// Info identifies a build.
type Info struct {
	// Version is the module's version, such as "v0.3.0", or "devel" for a build from
	// a work tree.
	Version string `json:"version"`
	// Revision is the commit, with "+dirty" if the tree differed from it; empty if
	// the build does not know.
	Revision string `json:"revision,omitempty"`
	// Time of the commit, RFC 3339.
	Time string `json:"time,omitempty"`
	Go   string `json:"go"`
	// Platform is GOOS/GOARCH.
	Platform string `json:"platform"`
}

// Get returns the build of the running program.
var Get = sync.OnceValue(func() Info {
	info := Info{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	if v := build.Main.Version; v != "" && v != "(devel)" {
		info.Version = v
	}
	dirty := ""
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Revision = s.Value
		case "vcs.time":
			info.Time = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+dirty"
			}
		}
	}
	if info.Revision != "" {
		info.Revision += dirty
	}
	return info
})

// String returns one word such as "devel-1a2b3c4d5e6f+dirty".
func (i Info) String() string {
	if i.Version != "devel" || i.Revision == "" {
		return i.Version
	}
	revision, dirty := i.Revision, ""
	if n := len("+dirty"); len(revision) > n && revision[len(revision)-n:] == "+dirty" {
		revision, dirty = revision[:len(revision)-n], "+dirty"
	}
	return "devel-" + revision[:min(12, len(revision))] + dirty
}
