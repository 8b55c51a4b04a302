package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sluice-mesh/sluice/dataplane/workload/launch"
)

func main() {
	launch.Init()
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, now: time.Now}
	ctx := context.Background()
	if !startsWorkload(os.Args[1:]) {
		// `sluice run` passes signals on to its command and ends with that.
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
	}
	os.Exit(a.execute(ctx, os.Args[1:]))
}
