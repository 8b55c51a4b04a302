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
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sluice-mesh/sluice/lab"
)

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

	l, err := lab.New(ctx, lab.Config{Bin: filepath.Dir(bin), Name: "demo", Verbose: *verbose})
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	shop := &shop{Lab: l, manifests: *config}
	passed, failed := 0, 0
	if err := shop.open(ctx); err == nil {
		passed, failed = tell(ctx, shop)
		if *keep && ctx.Err() == nil {
			fmt.Printf("\nThe node goes on until Ctrl-C. Look at it:\n  bin/sluice --run-dir %s status\n", l.RunDir())
			<-ctx.Done()
		}
	} else if ctx.Err() == nil {
		fmt.Printf("  ✗ the shop did not open: %v\n", err)
		failed++
	}
	if failed > 0 {
		fmt.Printf("\nThe node's last words:\n%s\n\n", l.LogTail(40))
	}
	if err := l.Down(); err != nil {
		fmt.Printf("  ✗ something is left behind: %v\n", err)
		failed++
	} else {
		passed++
		fmt.Println("  ✓ everything that was made is gone")
	}
	if err := context.Cause(ctx); err != nil && !*keep {
		fmt.Println("demo: interrupted:", err)
		failed++
	}
	fmt.Printf("demo: %d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// tell runs the steps in order and reports each.
func tell(ctx context.Context, shop *shop) (passed, failed int) {
	chapter := ""
	for _, s := range story {
		if ctx.Err() != nil {
			return passed, failed
		}
		if s.chapter != chapter {
			chapter = s.chapter
			fmt.Printf("\n%s\n", chapter)
		}
		said, err := s.run(ctx, shop)
		if err != nil {
			failed++
			fmt.Printf("  ✗ %s: %v\n", s.title, err)
			continue
		}
		passed++
		fmt.Printf("  ✓ %s: %s\n", s.title, said)
	}
	fmt.Println()
	return passed, failed
}
