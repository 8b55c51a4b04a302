package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Report is docs/benchmarks/latest.json.
type Report struct {
	Commit string `json:"commit"`
	Date   string `json:"date"`
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	Rounds int    `json:"rounds"`
	Rows   []Row  `json:"rows"`
}

// Row is the result of one scenario.
type Row struct {
	ID     string          `json:"id"`
	What   string          `json:"what"`
	Unit   string          `json:"unit"`
	Ours   Estimate        `json:"ours"`
	Peers  map[string]Peer `json:"peers,omitempty"`
	Target string          `json:"target"`
	Met    bool            `json:"met"`
	// Rounds that counted.
	Rounds int    `json:"rounds"`
	Note   string `json:"note,omitempty"`
	// Commit of the run that the row is from, where that is not the report's.
	Commit string `json:"commit,omitempty"`
}

// Peer is another contestant of the same rounds.
type Peer struct {
	Version string   `json:"version"`
	Median  float64  `json:"median"`
	Ratio   Estimate `json:"ratio"` // ours / peer, within a round
}

// newRow sums samples up.
func newRow(id, what, unit string, samples []sample, contestants []contestant) Row {
	r := Row{ID: id, What: what, Unit: unit, Ours: estimate(values(samples, ours)), Peers: map[string]Peer{}, Rounds: len(samples)}
	for _, c := range contestants {
		if c.name == ours || c.name == direct {
			continue
		}
		r.Peers[c.name] = Peer{Version: c.version, Median: median(values(samples, c.name)), Ratio: estimate(ratios(samples, ours, c.name))}
	}
	return r
}

// bestRatio returns ours over the cheapest of some peers, by medians.
func (r Row) bestRatio(peers ...string) float64 {
	best := math.Inf(1)
	ratio := math.Inf(1)
	for _, p := range peers {
		if peer, ok := r.Peers[p]; ok && peer.Median < best {
			best, ratio = peer.Median, peer.Ratio.Median
		}
	}
	return ratio
}

func (r Row) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %.4g %s [%.4g, %.4g]", r.ID, r.Ours.Median, r.Unit, r.Ours.Low, r.Ours.High)
	for _, name := range slices.Sorted(maps.Keys(r.Peers)) {
		p := r.Peers[name]
		fmt.Fprintf(&b, "; %s %.4g, ratio %.3f [%.3f, %.3f]", name, p.Median, p.Ratio.Median, p.Ratio.Low, p.Ratio.High)
	}
	fmt.Fprintf(&b, "; target %s: %s", r.Target, met(r.Met))
	return b.String()
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "not met"
}

func newReport(o *options) *Report {
	r := &Report{Date: time.Now().UTC().Format("2006-01-02"), Rounds: o.rounds}
	if out, err := exec.Command("git", "rev-parse", "HEAD").Output(); err == nil {
		r.Commit = strings.TrimSpace(string(out))
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, "model name"); ok {
				r.CPU = strings.TrimSpace(strings.TrimLeft(v, "\t :"))
				break
			}
		}
	}
	return r
}

// write writes the report; rows that were not run keep their last result.
func (r *Report) write(o *options) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	path := filepath.Join(o.out, "latest.json")
	if text, err := os.ReadFile(path); err == nil {
		var old Report
		if err := json.Unmarshal(text, &old); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, row := range old.Rows {
			if !slices.ContainsFunc(r.Rows, func(n Row) bool { return n.ID == row.ID }) {
				if row.Commit == "" && old.Commit != r.Commit {
					row.Commit = old.Commit
				}
				r.Rows = append(r.Rows, row)
			}
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	order := func(id string) int {
		for i, row := range rows {
			if id == row.id || strings.HasPrefix(id, row.id+" ") {
				return i
			}
		}
		return len(rows)
	}
	slices.SortStableFunc(r.Rows, func(a, b Row) int {
		if d := order(a.ID) - order(b.ID); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(path, append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(o.out, "latest.md"), r.markdown(), 0o644),
		os.WriteFile(filepath.Join(o.out, "latest.svg"), r.svg(), 0o644),
	)
}

func (r *Report) markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\nMeasured on %s at commit %.12s with `make bench`, Linux %s, %s, %d rounds.\n", r.Date, r.Commit, r.Kernel, r.CPU, r.Rounds)
	b.WriteString("Lower is better. Ratios are ours / peer within a round, medians with a bootstrap interval of 95 %.\n\n![ratios](latest.svg)\n\n")
	b.WriteString("| row | scenario | ours | peers (ratio) | target | |\n|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		var peers []string
		for _, name := range slices.Sorted(maps.Keys(row.Peers)) {
			p := row.Peers[name]
			peers = append(peers, fmt.Sprintf("%s %s: %.4g (**%.2f** [%.2f, %.2f])", name, p.Version, p.Median, p.Ratio.Median, p.Ratio.Low, p.Ratio.High))
		}
		fmt.Fprintf(&b, "| %s | %s | %.4g %s [%.4g, %.4g] | %s | %s | %s |\n",
			row.ID, row.What, row.Ours.Median, row.Unit, row.Ours.Low, row.Ours.High, strings.Join(peers, "<br>"), row.Target, met(row.Met))
		if row.Commit != "" {
			fmt.Fprintf(&b, "| | from an earlier run, at commit %.12s | | | | |\n", row.Commit)
		}
		if row.Note != "" {
			fmt.Fprintf(&b, "| | %s | | | | |\n", row.Note)
		}
	}
	return b.Bytes()
}

// svg draws the ratios as bars with their intervals, a line at 1.
func (r *Report) svg() []byte {
	const left, width, height, unit = 260, 760, 22, 200.0 // unit: pixels of a ratio of 1
	type bar struct {
		label string
		e     Estimate
	}
	var bars []bar
	for _, row := range r.Rows {
		for _, name := range slices.Sorted(maps.Keys(row.Peers)) {
			bars = append(bars, bar{row.ID + " against " + name, row.Peers[name].Ratio})
		}
	}
	x := func(ratio float64) float64 { return left + min(ratio, 2.4)*unit }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, (len(bars)+2)*height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="10" y="15">ours / peer: left of the line is better</text>`+"\n")
	for i, v := range bars {
		y := float64((i + 1) * height)
		colour := "#2a7"
		if v.e.Median > 1 {
			colour = "#c72"
		}
		fmt.Fprintf(&b, `<text x="10" y="%.0f">%s</text><rect x="%d" y="%.0f" width="%.1f" height="12" fill="%s"/>`+"\n", y+11, html.EscapeString(v.label), left, y, x(v.e.Median)-left, colour)
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%.0f" y2="%.0f" stroke="#000"/><text x="%.1f" y="%.0f">%.2f</text>`+"\n", x(v.e.Low), x(v.e.High), y+6, y+6, x(max(v.e.High, v.e.Median))+6, y+11, v.e.Median)
	}
	fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="%d" y2="%d" stroke="#000" stroke-dasharray="3 3"/>`+"\n</svg>\n", x(1), x(1), height-4, (len(bars)+1)*height)
	return b.Bytes()
}
