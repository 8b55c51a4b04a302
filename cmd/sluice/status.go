package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
)

// nodeStatus is the answer of `sluice status`.
type nodeStatus struct {
	Healthy   bool            `json:"healthy"`
	Processes []processStatus `json:"processes"`
}

// processStatus is one process: its status, or why there is none.
type processStatus struct {
	Process admin.Process `json:"process"`
	Status  *admin.Status `json:"status,omitempty"`
	Error   string        `json:"error,omitempty"`

	err error
}

func (a *app) statusCommand() *cobra.Command {
	var out format
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether the node works, and what it works with",
		Long: `Show the processes of the node, the abilities of the kernel that it needs, how full
its kernel maps are, how many things it serves, whether the configuration has arrived
and how many events could not be recorded.

Exits with 0 if all is well, with 3 if something is not, and with 2 if no node runs.`,
		Example: `  sluice status
  sluice status -o json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			s := readStatus(cmd.Context(), c)
			if err := s.missing(); err != nil {
				return err
			}
			if err := a.print(out, s, func(w io.Writer, colored bool) error { return writeStatus(w, colored, s, a.now()) }); err != nil {
				return err
			}
			if !s.Healthy {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

// readStatus asks all processes at once.
func readStatus(ctx context.Context, c *admin.Client) nodeStatus {
	s := nodeStatus{Healthy: true, Processes: make([]processStatus, len(admin.Processes))}
	var asked sync.WaitGroup
	for i, p := range admin.Processes {
		asked.Go(func() {
			row := processStatus{Process: p}
			status, err := c.Status(ctx, p)
			if err != nil {
				row.err, row.Error = err, err.Error()
			} else {
				row.Status = &status
			}
			s.Processes[i] = row
		})
	}
	asked.Wait()
	for _, p := range s.Processes {
		s.Healthy = s.Healthy && p.healthy()
	}
	return s
}

func (p processStatus) healthy() bool {
	if p.Status == nil || !p.Status.Component.OK {
		return false
	}
	for _, f := range p.Status.Features {
		if f.Needed && !f.Have {
			return false
		}
	}
	return true
}

// missing returns the error of a node of which no process answers.
func (s nodeStatus) missing() error {
	for _, p := range s.Processes {
		if p.Status != nil {
			return nil
		}
	}
	return s.Processes[0].err
}

func writeStatus(w io.Writer, colored bool, s nodeStatus, now time.Time) error {
	var features, maps, losses table
	features.header = []string{"KERNEL", "NEEDED", "THERE", "DETAIL"}
	maps.header = []string{"MAP", "ENTRIES", "ROOM", "USED"}
	losses.header = []string{"LOST EVENTS", "COUNT"}
	counts := &table{header: []string{"OBJECTS", "COUNT"}}
	streams := &table{header: []string{"CONFIGURATION", "RESOURCES", "TAKEN", "STATE"}}
	var remarks []string
	for _, p := range s.Processes {
		if p.Status == nil {
			continue
		}
		for _, f := range p.Status.Features {
			addFeature(&features, f)
		}
		for _, m := range p.Status.Maps {
			addMap(&maps, m)
		}
		for _, c := range p.Status.Counts {
			counts.add(c.Name, fmt.Sprint(c.Value))
		}
		for _, l := range p.Status.Losses {
			count := cell{fmt.Sprint(l.Events), plain}
			if l.Events > 0 {
				count.color = yellow
			}
			losses.add(l.Source, count)
		}
		if p.Process != admin.ProcessNode { // what it sent is in `sluice xds status`
			addStreams(streams, p)
		}
		for _, r := range xdsRemarks(p.Status.XDS) {
			remarks = append(remarks, string(p.Process)+": "+r)
		}
	}
	tables := []*table{processTable(s, now), &features, &maps, counts, streams, &losses}
	for i, t := range tables {
		if len(t.rows) == 0 {
			continue
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := t.write(w, colored); err != nil {
			return err
		}
	}
	for i, r := range remarks {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, printable(r))
	}
	return nil
}

func processTable(s nodeStatus, now time.Time) *table {
	t := &table{header: []string{"PROCESS", "PID", "UP", "VERSION", "STATE"}}
	for _, p := range s.Processes {
		if p.Status == nil {
			state := cell{"unreachable: " + p.Error, red}
			var unreachable *admin.UnreachableError
			if errors.As(p.err, &unreachable) && unreachable.NotRunning() {
				state.text = "not running"
			}
			t.add(string(p.Process), "", "", "", state)
			continue
		}
		c := p.Status.Component
		state := cell{"ok", green}
		if !c.OK {
			state = cell{"not ok", red}
		}
		if c.Detail != "" {
			state.text += ": " + c.Detail
		}
		t.add(string(c.Name), fmt.Sprint(c.PID), age(c.Started, now), c.Version, state)
	}
	return t
}

func addFeature(t *table, f admin.Feature) {
	there := yesNo(f.Have)
	if !f.Have && !f.Needed {
		there.color = yellow
	}
	needed := "no"
	if f.Needed {
		needed = "yes"
	}
	t.add(f.Name, needed, there, f.Detail)
}

// Above these parts of its room a map's usage is shown as worth a look, and as
// about to fail.
const (
	mapWarn  = 0.75
	mapAlarm = 0.95
)

func addMap(t *table, m admin.MapUsage) {
	used := cell{"", plain}
	if m.Max > 0 {
		part := float64(m.Entries) / float64(m.Max)
		used.text = fmt.Sprintf("%.1f%%", 100*part)
		switch {
		case part >= mapAlarm:
			used.color = red
		case part >= mapWarn:
			used.color = yellow
		}
	}
	t.add(m.Name, fmt.Sprint(m.Entries), fmt.Sprint(m.Max), used)
}

func addStreams(t *table, p processStatus) {
	for _, x := range p.Status.XDS {
		t.add(string(p.Process)+" "+x.Type, fmt.Sprint(x.Resources), x.Acked, streamState(x))
	}
}
