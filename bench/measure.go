package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The CPUs of clients and servers, and of contestants.
const (
	clientCPU = 0
	nodeCPU   = 1
)

// pin keeps this thread, and what it starts, to one CPU. On a machine with one CPU
// it does nothing.
func pin(cpu int) error {
	var online unix.CPUSet
	if err := unix.SchedGetaffinity(1, &online); err == nil && !online.IsSet(cpu) {
		return nil
	}
	var set unix.CPUSet
	set.Set(cpu)
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &set))
}

// contestant is one way to do the same thing.
type contestant struct {
	name    string
	version string
	// cgroups are those whose CPU time is the cost.
	cgroups []string
	// run does operations for a while and returns how many.
	run func(ctx context.Context, d time.Duration) (ops float64, err error)
}

// The names of contestants that are no peers.
const (
	direct = "direct" // the control
	ours   = "sluice"
)

// sample is the cost of one operation of each contestant in one round.
type sample map[string]float64

// maxDrift is how far a round's control may be from the median of all.
const maxDrift = 0.15

// compete runs rounds of all contestants in random order and returns those rounds
// whose control was undisturbed. unit turns microseconds per operation into the
// unit that is reported.
func compete(ctx context.Context, o *options, contestants []contestant, unit float64) ([]sample, error) {
	length := o.length
	for _, c := range contestants { // warm up
		if _, err := c.run(ctx, length/3); err != nil {
			return nil, fmt.Errorf("warm %s up: %w", c.name, err)
		}
	}
	var samples []sample
	for round := range o.rounds {
		s := sample{}
		for _, i := range rand.Perm(len(contestants)) {
			c := contestants[i]
			before, err := cpuTime(c.cgroups)
			if err != nil {
				return nil, err
			}
			ops, err := c.run(ctx, length)
			if err != nil {
				return nil, fmt.Errorf("round %d, %s: %w", round+1, c.name, err)
			}
			after, err := cpuTime(c.cgroups)
			if err != nil {
				return nil, err
			}
			if ops == 0 {
				return nil, fmt.Errorf("round %d: %s did nothing", round+1, c.name)
			}
			s[c.name] = float64((after - before).Microseconds()) / ops * unit
		}
		samples = append(samples, s)
	}
	return undisturbed(samples), nil
}

func undisturbed(samples []sample) []sample {
	if _, ok := samples[0][direct]; !ok {
		return samples
	}
	var control []float64
	for _, s := range samples {
		control = append(control, s[direct])
	}
	m := median(control)
	kept := slices.DeleteFunc(slices.Clone(samples), func(s sample) bool {
		return s[direct] < m*(1-maxDrift) || s[direct] > m*(1+maxDrift)
	})
	if len(kept) < 3 { // all of it was noise: say so by the width of the intervals
		return samples
	}
	return kept
}

// cpuTime returns the CPU time that cgroups have used, those below included.
func cpuTime(cgroups []string) (time.Duration, error) {
	var sum time.Duration
	for _, cg := range cgroups {
		text, err := os.ReadFile(filepath.Join(cg, "cpu.stat"))
		if err != nil {
			return 0, err
		}
		found := false
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
				n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				if err != nil {
					return 0, err
				}
				sum += time.Duration(n) * time.Microsecond
				found = true
			}
		}
		if !found {
			return 0, errors.New(cg + " does not account CPU time")
		}
	}
	return sum, nil
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile interpolates between the ranks of v.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	at := q * float64(len(s)-1)
	low := int(at)
	if low+1 >= len(s) {
		return s[low]
	}
	return s[low] + (at-float64(low))*(s[low+1]-s[low])
}

// Estimate is a median with a bootstrap interval of 95 %.
type Estimate struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

func estimate(v []float64) Estimate {
	const resamples = 2000
	medians := make([]float64, resamples)
	draw := make([]float64, len(v))
	for i := range medians {
		for j := range draw {
			draw[j] = v[rand.IntN(len(v))]
		}
		medians[i] = median(draw)
	}
	return Estimate{median(v), quantile(medians, 0.025), quantile(medians, 0.975)}
}

// values returns one contestant's samples.
func values(samples []sample, name string) []float64 {
	var out []float64
	for _, s := range samples {
		out = append(out, s[name])
	}
	return out
}

// ratios returns a/b of each round.
func ratios(samples []sample, a, b string) []float64 {
	var out []float64
	for _, s := range samples {
		out = append(out, s[a]/s[b])
	}
	return out
}
