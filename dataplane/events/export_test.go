package events

import (
	"time"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// NewFlow makes a flow of an event's bytes as Run does; only the naming functions of cfg are used.
func NewFlow(cfg Config, sample []byte, offset time.Duration) (*flow.Flow, error) {
	return (&Reader{cfg: cfg.withDefaults()}).flow(sample, offset)
}
