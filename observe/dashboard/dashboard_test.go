package dashboard

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// documented is the metrics of the reference, with their type and labels.
type documented struct {
	kind   string
	labels []string
}

func reference(t *testing.T) map[string]documented {
	t.Helper()
	page, err := os.ReadFile("../../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]documented{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 || !strings.Contains(cells[1], "`sluice_") {
			continue
		}
		d := documented{kind: strings.TrimSpace(cells[2])}
		for _, l := range strings.Split(cells[3], ",") {
			d.labels = append(d.labels, strings.TrimSpace(l))
		}
		out[strings.Trim(cells[1], " `")] = d
	}
	if len(out) < 20 {
		t.Fatalf("%d metrics in the reference", len(out))
	}
	return out
}

var promql = parser.NewParser(parser.Options{})

// check parses an expression and holds what it names against the reference.
func check(t *testing.T, where, expr string, known map[string]documented) {
	t.Helper()
	// What Grafana puts in.
	expr = strings.ReplaceAll(expr, "$__rate_interval", "5m")
	parsed, err := promql.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v in %s", where, err, expr)
		return
	}
	var of []string // labels that any of the metrics has
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		name := s.Name
		d, ok := known[name]
		if base, bucket := strings.CutSuffix(name, "_bucket"); !ok && bucket && known[base].kind == "histogram" {
			d, ok = known[base], true
			d.labels = append(slices.Clone(d.labels), "le")
		}
		if !ok {
			t.Errorf("%s: no metric is called %s", where, name)
			return nil
		}
		d.labels = append(slices.Clone(d.labels), "instance", "job")
		of = append(of, d.labels...)
		for _, m := range s.LabelMatchers {
			if m.Name == labels.MetricName {
				continue
			}
			if !slices.Contains(d.labels, m.Name) {
				t.Errorf("%s: %s has no label %s", where, name, m.Name)
			}
			if m.Name == "reason" && m.Value != "" {
				if _, ok := flow.ParseReason(m.Value); !ok {
					t.Errorf("%s: no reason is called %q", where, m.Value)
				}
			}
		}
		return nil
	})
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		if a, ok := n.(*parser.AggregateExpr); ok {
			for _, l := range a.Grouping {
				if !slices.Contains(of, l) {
					t.Errorf("%s: it groups by %s, which no metric in it has", where, l)
				}
			}
		}
		if c, ok := n.(*parser.Call); ok && (c.Func.Name == "rate" || c.Func.Name == "increase") {
			sel := c.Args[0].(*parser.MatrixSelector).VectorSelector.(*parser.VectorSelector)
			if kind := known[strings.TrimSuffix(sel.Name, "_bucket")].kind; kind != "counter" && kind != "histogram" {
				t.Errorf("%s: the rate of %s, a %s", where, sel.Name, kind)
			}
		}
		return nil
	})
}

func TestDashboard(t *testing.T) {
	known := reference(t)
	b, err := Dashboard()
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr, LegendFormat string }
			GridPos struct{ X, Y, W, H int }
		}
		Templating struct{ List []struct{ Query string } }
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	type cell struct{ x, y int }
	taken := map[cell]string{}
	for _, p := range board.Panels {
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[cell{x, y}]; other != "" {
					t.Fatalf("%s lies over %s", p.Title, other)
				}
				taken[cell{x, y}] = p.Title
			}
		}
		for _, q := range p.Targets {
			check(t, p.Title, q.Expr, known)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
	}
	variable := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
	for _, v := range board.Templating.List {
		if parts := variable.FindStringSubmatch(v.Query); parts != nil {
			d, ok := known[parts[1]]
			if !ok || parts[2] != "instance" && !slices.Contains(d.labels, parts[2]) {
				t.Errorf("the variable %s", v.Query)
			}
		}
	}
}

// TestAlerts has Prometheus read the rules, templates included.
func TestAlerts(t *testing.T) {
	known := reference(t)
	b, err := Alerts()
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(b, false, model.UTF8Validation, promql, slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil || len(groups.Groups) != 1 || len(groups.Groups[0].Rules) != len(alerts()) {
		t.Fatalf("Prometheus read %+v", groups)
	}
	for _, r := range groups.Groups[0].Rules {
		check(t, r.Alert, r.Expr, known)
	}
}

// TestGenerated: the chart's files are what this package makes.
func TestGenerated(t *testing.T) {
	for path, content := range map[string]func() ([]byte, error){
		"../../charts/sluice/dashboards/sluice.json": Dashboard,
		"../../charts/sluice/alerts/sluice.yaml":     Alerts,
	} {
		want, err := content()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is out of date; run: go generate ./observe/dashboard", path)
		}
	}
}
