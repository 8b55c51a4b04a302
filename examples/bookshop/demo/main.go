// Command demo starts a Sluice node on the bookshop in namespaces of its own,
// runs the shop's programs as workloads, and tells what the node does with their
// connections. Every step checks itself.
//
// It uses the public commands only (sluiced node, sluice run, sluice observe and
// so on) and what a person would do around them: make a network namespace, copy
// the manifests, edit one.
//
// Exit status: 0 if every step passed, 1 if one failed, 2 if the machine lacks
// something that the node needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

func init() {
	// Children are started from this thread only, so that they end with it (their
	// parent death signal is that of the thread).
	runtime.LockOSThread()
}

func main() {
	bin, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	config := flag.String("config", "examples/bookshop/config", "the folder of manifests")
	keep := flag.Bool("keep", false, "leave the node running until Ctrl-C when the story is over")
	verbose := flag.Bool("v", false, "show the commands and the node's log")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()

	lab := &lab{bin: filepath.Dir(bin), manifests: *config, dir: "/run/sluice-demo", verbose: *verbose}
	if err := lab.preflight(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	passed, failed := 0, 0
	err = lab.up(ctx)
	if err == nil {
		passed, failed = tell(ctx, lab)
		if *keep && ctx.Err() == nil {
			fmt.Printf("\nThe node goes on until Ctrl-C. Look at it:\n  bin/sluice --run-dir %s status\n", lab.run())
			<-ctx.Done()
		}
	} else if !errors.Is(err, context.Canceled) {
		fmt.Printf("  ✗ the node did not start: %v\n", err)
		lab.showLog()
		failed++
	}
	if err := lab.down(); err != nil {
		fmt.Printf("  ✗ something is left behind: %v\n", err)
		failed++
	} else {
		passed++
		fmt.Println("  ✓ everything that was made is gone")
	}
	if err := context.Cause(ctx); err != nil {
		fmt.Println("demo: interrupted")
		failed++
	}
	fmt.Printf("demo: %d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// tell runs the steps in order and reports each.
func tell(ctx context.Context, lab *lab) (passed, failed int) {
	chapter := ""
	for _, s := range story {
		if ctx.Err() != nil {
			return passed, failed
		}
		if s.chapter != chapter {
			chapter = s.chapter
			fmt.Printf("\n%s\n", chapter)
		}
		said, err := s.run(ctx, lab)
		if err != nil {
			failed++
			fmt.Printf("  ✗ %s: %v\n", s.title, err)
			continue
		}
		passed++
		fmt.Printf("  ✓ %s: %s\n", s.title, said)
	}
	fmt.Println()
	if failed > 0 {
		lab.showLog()
	}
	return passed, failed
}
