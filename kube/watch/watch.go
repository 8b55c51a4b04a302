package watch

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/sluice-mesh/sluice/kube"
)

// Config of a Folder.
type Config struct {
	// Directories are watched recursively. In a conflict between two files an
	// earlier directory wins. One that does not exist is waited for.
	Directories []string
	// ServiceCIDRs are where Services without clusterIP get their addresses, at
	// most one of each family. The first is the default family.
	ServiceCIDRs []netip.Prefix
	// StateDir is where addresses given to Services are remembered, or empty.
	StateDir string
	Logger   *slog.Logger
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	if len(c.Directories) == 0 {
		return errors.New("watch: no directory")
	}
	return nil
}

// Folder is a kube.Source.
type Folder struct{ cfg Config }

// New validates; it touches nothing.
func New(cfg Config) (*Folder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Folder{cfg: cfg}, nil
}

// Run implements kube.Source.
func (f *Folder) Run(ctx context.Context, changed func(kube.Change)) error {
	return errors.New("not yet")
}
