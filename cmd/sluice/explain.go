package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/mesh"
)

func (a *app) routeExplainCommand() *cobra.Command {
	var out format
	var headers []string
	var from string
	cmd := &cobra.Command{
		Use:   "explain METHOD URL",
		Short: "Show which rule a request meets, and why not the others",
		Long: `Show which rule a request would meet: the listener that takes it, the rules that
are tried in order with what speaks against each, and the backends of the rule that
applies. The node proxy answers from the configuration that it runs with. No request
is sent.

The host of URL is a service as a workload names it, a hostname of a Gateway, or an
address. --from names the workload that asks; without it the client is outside of
the mesh.`,
		Example: `  sluice route explain GET http://reviews/reviews/7 --from shop/web
  sluice route explain GET https://bookshop.example/ -H 'x-canary: yes'`,
		Args: arguments(cobra.ExactArgs(2)),
		ValidArgsFunction: first(cobra.FixedCompletions(
			[]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}, cobra.ShellCompDirectiveNoFileComp)),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := explainRequest(args[0], args[1], headers, from)
			if err != nil {
				return usagef(cmd, "%w", err)
			}
			c := a.client()
			defer c.Close()
			e, err := c.Explain(cmd.Context(), q)
			if err != nil {
				return err
			}
			if err := a.print(out, e, func(w io.Writer, colored bool) error { return writeExplanation(w, colored, e) }); err != nil {
				return err
			}
			if e.Reason != "" {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "header field of the request, 'Name: value' (repeatable)")
	cmd.Flags().StringVar(&from, "from", "", "workload that asks, NAMESPACE/NAME")
	completeWith(cmd, "from", a.live(workloadNames))
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

// explainRequest checks what a person wrote. A URL without a scheme is http.
func explainRequest(method, rawURL string, headers []string, from string) (admin.ExplainRequest, error) {
	q := admin.ExplainRequest{Method: method}
	if method == "" || strings.ContainsAny(method, " /:") {
		return q, fmt.Errorf("%q is not a method; want METHOD URL, such as GET http://reviews.shop/", method)
	}
	if !strings.Contains(rawURL, "://") {
		rawURL = "http://" + rawURL
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return q, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return q, fmt.Errorf("%q: want http:// or https:// and a host", rawURL)
	}
	if u.User != nil {
		return q, fmt.Errorf("%q: a user in a URL is not part of a request; use -H 'Authorization: …'", rawURL)
	}
	q.URL = u.String()
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return q, fmt.Errorf("-H %q: want 'Name: value'", h)
		}
		q.Headers = append(q.Headers, admin.Header{Name: name, Value: strings.TrimSpace(value)})
	}
	if from != "" {
		if q.From, err = mesh.ParseName(from); err != nil {
			return q, fmt.Errorf("--from: %w", err)
		}
	}
	return q, nil
}

func writeExplanation(w io.Writer, colored bool, e *admin.Explanation) error {
	client := "a client outside of the mesh"
	if !e.Request.From.IsZero() {
		client = e.Request.From.String()
	}
	facts := &table{}
	facts.add("request", e.Request.Method+" "+e.Request.URL)
	facts.add("from", client)
	for _, f := range []struct{ name, value string }{{"listener", e.Listener}, {"table", e.Table}, {"host", e.Host}} {
		if f.value != "" {
			facts.add(f.name, f.value)
		}
	}
	if err := facts.write(w, colored); err != nil {
		return err
	}
	if len(e.Considered) > 0 {
		fmt.Fprintln(w)
		if err := consideredTable(e).write(w, colored); err != nil {
			return err
		}
	}
	if len(e.Clusters) > 0 {
		fmt.Fprintln(w)
		if err := clusterTable(e.Clusters).write(w, colored); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	for _, f := range e.Filters {
		fmt.Fprintln(w, "filter: "+printable(f))
	}
	for _, c := range e.Clusters {
		for _, f := range c.Filters {
			fmt.Fprintln(w, "filter of "+printable(c.Name)+": "+printable(f))
		}
	}
	for _, l := range e.Limits {
		fmt.Fprintln(w, printable(l))
	}
	verdict, color := outcome(e)
	_, err := fmt.Fprintln(w, paint(printable(verdict), color, colored))
	return err
}

func consideredTable(e *admin.Explanation) *table {
	t := &table{header: []string{"RULE", "MATCH", "CONDITIONS", "RESULT"}}
	for i, r := range e.Considered {
		name := fmt.Sprintf("%s#%d", r.Route, r.Rule)
		if r.Name != "" {
			name += " " + r.Name
		}
		result := cell{"no: " + r.Why, faint}
		switch {
		case i == e.Winner:
			result = cell{"applies", green}
		case r.Matched:
			result = cell{"matches", plain}
		}
		t.add(name, fmt.Sprint(r.Match), r.Conditions, result)
	}
	return t
}

func clusterTable(clusters []admin.ExplainedCluster) *table {
	t := &table{header: []string{"BACKEND", "SHARE", "ENDPOINT", "WORKLOAD", "READY"}}
	for _, c := range clusters {
		name := cell{c.Name, plain}
		if c.Name == "" {
			name = cell{"invalid backend, answered with 500", red}
		}
		share := fmt.Sprintf("%.4g%%", 100*c.Share)
		if len(c.Endpoints) == 0 {
			t.add(name, share, cell{"none", red}, "", "")
		}
		for _, e := range c.Endpoints {
			workload := ""
			if !e.Workload.IsZero() {
				workload = e.Workload.String()
			}
			t.add(name, share, e.Address.String(), workload, yesNo(e.Ready))
		}
	}
	return t
}

// outcome returns the last line of an explanation and its colour.
func outcome(e *admin.Explanation) (text, color string) {
	switch {
	case e.Reason != "":
		text, color = "refused: "+e.Reason, red
		if e.Status != 0 {
			text = fmt.Sprintf("refused with %d: %s", e.Status, e.Reason)
		}
	case e.Status != 0:
		text, color = fmt.Sprintf("answered by the node proxy with %d", e.Status), cyan
		if e.Location != "" {
			text += ", location " + e.Location
		}
	case e.Listener == "":
		text, color = "not for the node proxy", cyan
	default:
		text, color = "forwarded", green
		if e.Path != "" {
			text += " as " + e.Path + " of " + e.Authority
		}
	}
	if e.Detail != "" {
		text += " (" + e.Detail + ")"
	}
	return text, color
}
