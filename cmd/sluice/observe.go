package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/observe/filter"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// defaultLast is how many flows `sluice observe` shows unless told otherwise.
const defaultLast = 20

func (a *app) observeCommand() *cobra.Command {
	var out format
	var last int
	var since string
	var follow bool
	terms := &termFlags{}
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show the flows of the node: connections and requests, with verdict and reason",
		Long: `Show the flows that the node recorded, oldest first, a line for each: connections
that the kernel balanced or refused, requests and connections that the node proxy
carried, and DNS queries. A request is one line with its response: endpoint, status,
latency, tries, verdict and reason, route and rule, and trace. Events that were lost
are shown as lines of their own. --follow goes on when the agent restarts, and says
what is missing.

Without --follow or --since the last 20 flows are shown; with them, --last is as many
as there are. A filter that is given more than once selects what any of its values
selects; different filters must all agree. --not turns the filter after it around:
what that selects is not shown, whatever the others say.

Exits with 3 if there is no flow to show.`,
		Example: `  sluice observe --last 50
  sluice observe --follow --namespace shop
  sluice observe --since 5m --verdict dropped --verdict error
  sluice observe --to-service shop/reviews --http-status 5+ --not --http-path '^/healthz$'
  sluice observe --follow --protocol dns --dns-query '^reviews\.'
  sluice observe --min-latency 250ms --type http
  sluice observe --from-label app=web,tier!=test -o jsonl | jq .http.path`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if terms.not {
				return usagef(cmd, "--not must stand before a filter")
			}
			q := admin.FlowQuery{Terms: terms.terms, Last: last, Follow: follow}
			if _, err := filter.Compile(q.Terms); err != nil {
				return usagef(cmd, "%w", err)
			}
			if last < 0 {
				return usagef(cmd, "--last %d: want a number of flows, or 0 for all that the node holds", last)
			}
			var err error
			if q.Since, err = parseSince(since, a.now()); err != nil {
				return usagef(cmd, "%w", err)
			}
			if !cmd.Flags().Changed("last") && (follow || since != "") {
				q.Last = 0
			}
			if follow && out == formatJSON {
				return usagef(cmd, "-o json is one list and ends with it; use -o jsonl with --follow")
			}
			return a.observe(cmd.Context(), q, out)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&follow, "follow", "f", false, "go on with flows as they come")
	flags.IntVar(&last, "last", defaultLast, "show so many flows at most, the newest; 0 for all that the node holds")
	flags.StringVar(&since, "since", "", "show flows since then: a duration such as 5m, or a time (RFC 3339)")
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML, formatJSONL)
	terms.add(a, cmd)
	return cmd
}

// termFlags collects the filters of a command line in their order.
type termFlags struct {
	terms []filter.Term
	not   bool // the next filter is negated
}

func (t *termFlags) add(a *app, cmd *cobra.Command) {
	cmd.Flags().BoolVar(&t.not, "not", false, "turn the next filter around")
	short := map[string]string{"namespace": "n", "label": "l"}
	for _, f := range filter.Flags() {
		cmd.Flags().VarP(&termValue{flags: t, flag: f}, f.Name, short[f.Name], f.Usage)
		switch list := liveNames(f.Names); {
		case f.Words != nil:
			complete(cmd, f.Name, f.Words...)
		case list != nil:
			completeWith(cmd, f.Name, a.live(list))
		default:
			complete(cmd, f.Name)
		}
	}
}

// termValue is the pflag.Value of one filter.
type termValue struct {
	flags *termFlags
	flag  filter.Flag
}

var _ pflag.Value = (*termValue)(nil)

func (v *termValue) String() string { return "" }
func (v *termValue) Type() string   { return v.flag.Value }
func (v *termValue) Set(s string) error {
	v.flags.terms = append(v.flags.terms, filter.Term{Flag: v.flag.Name, Value: s, Not: v.flags.not})
	v.flags.not = false
	return nil
}

// parseSince returns the time of a duration before now, or of RFC 3339, and the
// zero time of an empty text.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %q: want a duration such as 5m or 2h30m, or a time such as 2026-01-31T12:00:00Z", s)
	}
	return t, nil
}

// The bounds of the wait between attempts to reach an agent that went away.
const (
	againFirst = 100 * time.Millisecond
	againLast  = 2 * time.Second
)

// follow is the client's Flows, but a query that follows outlives the agent: it goes
// on with the next agent's flows, after a flow of its own that says what is missing.
// Flows of the proxy are not: it keeps them for the next agent, as far as it has room.
func follow(ctx context.Context, c *admin.Client, q admin.FlowQuery, now func() time.Time, each func(*flow.Flow, []byte) error) error {
	if !q.Follow {
		return c.Flows(ctx, q, each)
	}
	before, err := c.Status(ctx, admin.ProcessAgent)
	if err != nil {
		return err
	}
	last := now()
	for {
		err := c.Flows(ctx, q, func(f *flow.Flow, line []byte) error {
			if f.Time.After(last) {
				last = f.Time
			}
			return each(f, line)
		})
		var away *admin.UnreachableError
		if !errors.As(err, &away) {
			return err
		}
		since := now()
		after, err := whenBack(ctx, c)
		if err != nil {
			return err
		}
		if !after.Component.Started.Equal(before.Component.Started) {
			gap := &flow.Flow{
				Time: now(), Type: flow.TypeLost, LostSource: flow.LostByRestart,
				Detail: fmt.Sprintf("away from %s to %s", since.Format(time.TimeOnly), after.Component.Started.In(since.Location()).Format(time.TimeOnly)),
			}
			line, err := json.Marshal(gap)
			if err != nil {
				return err
			}
			if err := each(gap, line); err != nil {
				return err
			}
		}
		before = after
		q.Last, q.Since = 0, last.Add(1)
	}
}

// whenBack waits for an agent that answers.
func whenBack(ctx context.Context, c *admin.Client) (admin.Status, error) {
	for wait := againFirst; ; wait = min(2*wait, againLast) {
		st, err := c.Status(ctx, admin.ProcessAgent)
		var away *admin.UnreachableError
		if err == nil || !errors.As(err, &away) || errors.Is(err, os.ErrPermission) {
			return st, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

// observe prints the flows of a query as they come.
func (a *app) observe(ctx context.Context, q admin.FlowQuery, out format) error {
	c := a.client()
	defer c.Close()
	shown := 0
	list := []json.RawMessage{}
	lines := flowLines{now: a.now(), colored: a.colored()}
	err := follow(ctx, c, q, a.now, func(f *flow.Flow, line []byte) error {
		shown++
		var err error
		switch out {
		case formatJSON:
			list = append(list, bytes.Clone(line))
		case formatJSONL:
			_, err = a.stdout.Write(append(bytes.Clone(line), '\n'))
		case formatYAML:
			var doc []byte
			if doc, err = yaml.JSONToYAML(line); err == nil {
				_, err = fmt.Fprintf(a.stdout, "---\n%s", doc)
			}
		default:
			_, err = a.stdout.Write(lines.append(nil, f))
		}
		return err
	})
	if q.Follow && errors.Is(err, context.Canceled) {
		return nil // a person ends it so
	}
	if err != nil {
		return err
	}
	if out == formatJSON {
		if err := a.print(out, list, nil); err != nil {
			return err
		}
	}
	if shown == 0 {
		return answerNo("No flows.")
	}
	return nil
}
