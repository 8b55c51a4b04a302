package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sluice-mesh/sluice/admin"
)

// The exit codes of all commands but run, which ends as its command does.
const (
	exitOK = 0
	// exitFailed: the command could not do its work.
	exitFailed = 1
	// exitUsage: the command was not understood, or what it needs is missing: no node
	// is running, or the user is not root.
	exitUsage = 2
	// exitNo: the command did its work and the answer is no.
	exitNo = 3
)

// exitCodes is the documentation of the codes, for help texts and the reference.
const exitCodes = `Exit codes:
  0  the answer is there, or the node is healthy
  1  the command failed
  2  the command was not understood, or what it needs is missing: no node runs, or the user is not root
  3  the answer is no: nothing by that name, no flow selected, a request that would be refused, an unhealthy node
"sluice run" ends with the exit code of its command, or with 125, 126 or 127 if the command was not started (as docker-run does).`

// usageError is a command line that cannot be right.
type usageError struct {
	err     error
	command string // path of the command whose help says more
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// exitError ends the program with a code. Its text, if any, was not yet shown.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// answerNo returns the error of a command whose answer is no.
func answerNo(format string, args ...any) error {
	return &exitError{code: exitNo, text: fmt.Sprintf(format, args...)}
}

// report prints an error and returns the exit code for it.
func report(w io.Writer, err error) int {
	var usage *usageError
	var exit *exitError
	var unreachable *admin.UnreachableError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		if exit.text != "" {
			fmt.Fprintln(w, printableLines(exit.text))
		}
		return exit.code
	case errors.As(err, &usage):
		fmt.Fprintf(w, "sluice: %s\n", printableLines(err.Error()))
		if usage.command != "" {
			fmt.Fprintf(w, "Run `%s --help` for how to use it.\n", usage.command)
		}
		return exitUsage
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(w, "sluice: interrupted")
		return exitFailed
	}
	fmt.Fprintf(w, "sluice: %s\n", printableLines(err.Error()))
	switch {
	case errors.As(err, &unreachable):
		return exitUsage
	case errors.Is(err, admin.ErrNotFound):
		return exitNo
	}
	return exitFailed
}

func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}
