// Command bench measures Sluice side by side with other proxies on one machine,
// and writes what it measured to docs/benchmarks.
//
// A row is a scenario. Each round runs every contestant once, in random order:
// the direct path as a control, ours and the peers, each with one core of work
// on the second CPU while clients and servers have the first. The measure is CPU
// time per operation, as the kernel accounts it to the contestant's cgroup; all
// processes of the node count as ours. Rounds whose control was disturbed are
// thrown away, and what is reported are medians, ratios within a round, and a
// bootstrap interval of 95 % around their median.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-mesh/sluice/lab"
)

// options of a run.
type options struct {
	quick  bool
	rounds int
	length time.Duration // of one contestant's turn
	out    string
}

// finer returns the same time in more and shorter rounds, for what is over before
// the machine's mood changes.
func (o *options) finer(times int) *options {
	f := *o
	f.rounds, f.length = o.rounds*times, o.length/time.Duration(times)
	return &f
}

// row is a scenario: it brings its own lab up and down.
type row struct {
	id, what string
	run      func(context.Context, *options) ([]Row, error)
}

var rows = []row{
	{"P1", "HTTP/1.1 keep-alive route through the Gateway, 1 KB, 32 connections", runP1},
	{"P2", "the same between two workloads of the node, steered", runP2},
	{"P6", "raw TCP relay", runP6},
	{"P11", "connect to a Service against connect to its endpoint", runP11},
	{"P15", "one route changed among 3,000", runP15},
}

func main() {
	if len(os.Args) > 1 {
		if tool, ok := tools[os.Args[1]]; ok {
			if err := tool(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "bench", os.Args[1]+":", err)
				os.Exit(1)
			}
			return
		}
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	pick := flag.String("rows", "", "ids of rows, comma separated; empty: all")
	quick := flag.Bool("quick", false, "few and short rounds: about two minutes, for a first impression")
	hold := flag.Bool("hold", false, "only start the node and its servers, for a look at it, until Ctrl-C")
	out := flag.String("out", "docs/benchmarks", "folder of the results")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := &options{quick: *quick, rounds: 9, length: 3 * time.Second, out: *out}
	if *quick {
		o.rounds, o.length = 3, time.Second
	}
	if *hold {
		return holdLab(ctx)
	}
	wanted := strings.FieldsFunc(*pick, func(r rune) bool { return r == ',' })
	report := newReport(o)
	for _, r := range rows {
		if len(wanted) > 0 && !slices.Contains(wanted, r.id) {
			continue
		}
		fmt.Printf("%s: %s\n", r.id, r.what)
		measured, err := r.run(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", r.id, err)
		}
		for _, m := range measured {
			fmt.Println("  " + m.line())
		}
		report.Rows = append(report.Rows, measured...)
	}
	return report.write(o)
}

// withLab runs f with a node on the YAML of files.
func withLab(ctx context.Context, files map[string]string, f func(*lab.Lab) error) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The node's one core is the second CPU; everything else that is started, and
	// this process, keep to the first.
	if err := pin(nodeCPU); err != nil {
		return err
	}
	l, err := lab.New(ctx, lab.Config{
		Bin: filepath.Dir(self), Name: "bench", NodeFlags: []string{"--proxy-loops", "1", "--log-level", "warn"},
	})
	if err != nil {
		return err
	}
	defer func() {
		if downErr := l.Down(); err == nil {
			err = downErr
		}
	}()
	err = l.Up(ctx, func(config string) error {
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(config, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, l.LogTail(20))
	}
	if err := pin(clientCPU); err != nil {
		return err
	}
	if err := f(l); err != nil {
		return fmt.Errorf("%w\n%s", err, l.LogTail(20))
	}
	return nil
}

// holdLab starts what the rows measure and leaves it to the person.
func holdLab(ctx context.Context) error {
	return withLab(ctx, map[string]string{"base.yaml": baseYAML}, func(l *lab.Lab) error {
		address, err := httpBackend(ctx, l)
		if err != nil {
			return err
		}
		if _, err := tcpBackend(ctx, l); err != nil {
			return err
		}
		fmt.Printf("web at %s:8080, Gateway at %s, run folder %s\n", address, gatewayAddress, l.RunDir())
		<-ctx.Done()
		return nil
	})
}
