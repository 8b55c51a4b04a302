package route

import (
	"fmt"

	"github.com/sluice-mesh/sluice/mesh"
)

// Explanation says how a request was matched.
type Explanation struct {
	Table string `json:"table"`
	// Known says that the table has virtual hosts.
	Known bool `json:"known"`
	// Hostname is that of the virtual host that serves the authority; empty if none does.
	Hostname string `json:"hostname,omitempty"`
	// Rules of the virtual host in the order of precedence.
	Rules []RuleExplanation `json:"rules,omitempty"`
	// Winner is the index in Rules of the rule that takes the request, or -1.
	Winner int `json:"winner"`
}

// RuleExplanation says what became of one rule.
type RuleExplanation struct {
	Route      string `json:"route"` // "HTTPRoute/namespace/name"
	RuleIndex  int    `json:"rule"`
	RuleName   string `json:"rule_name,omitempty"`
	MatchIndex int    `json:"match"`
	// Matched says that the rule would take the request if none came before it.
	Matched bool `json:"matched"`
	// Why says which condition failed, or which rule came first; empty for the winner.
	Why string `json:"why,omitempty"`
}

// Explain matches as Match does, and says of each rule of the virtual host why it
// was not taken.
func (t *Tables) Explain(table string, req *Request) Explanation {
	e := Explanation{Table: table, Known: t.Has(table), Winner: -1}
	h := t.host(table, req)
	if h == nil {
		return e
	}
	e.Hostname = h.Hostname
	e.Winner = h.match(req)
	path, query := splitQuery(req.Path)
	for i := range h.rules {
		r := &h.rules[i]
		x := RuleExplanation{
			Route: r.RouteKind + "/" + r.Route.String(), RuleIndex: r.RuleIndex,
			RuleName: r.RuleName, MatchIndex: r.MatchIndex,
		}
		miss := mismatch{part: partPath}
		if r.matchesPath(path) {
			miss = r.miss(req, query)
		}
		switch {
		case miss.part != partNone:
			x.Why = r.why(miss, req, path, query)
		case i != e.Winner:
			x.Matched = true
			x.Why = "comes after " + h.rules[e.Winner].String()
		default:
			x.Matched = true
		}
		e.Rules = append(e.Rules, x)
	}
	return e
}

func (r *Rule) why(miss mismatch, req *Request, path, query []byte) string {
	switch miss.part {
	case partPath:
		kind := "path"
		switch r.Match.PathKind {
		case mesh.MatchPrefix:
			kind = "path prefix"
		case mesh.MatchRegexp:
			kind = "path regular expression"
		}
		return fmt.Sprintf("path %q is not of %s %q", path, kind, r.Match.Path)
	case partMethod:
		return fmt.Sprintf("method %q is not %q", req.Method, r.Match.Method)
	case partHeader:
		m := &r.headers[miss.i]
		value, ok := req.header(m.name)
		return m.why("header", value, ok)
	case partQuery:
		m := &r.query[miss.i]
		raw, ok := parameter(query, m.name)
		return m.why("query parameter", decode(nil, raw), ok)
	}
	return ""
}

func (m *valueMatch) why(what string, value []byte, ok bool) string {
	if !ok {
		return fmt.Sprintf("%s %q is missing", what, m.name)
	}
	if m.re != nil {
		source := m.re.String()
		return fmt.Sprintf("%s %q is %q, not of regular expression %q", what, m.name, value, source[len(`\A(?:`):len(source)-len(`)\z`)])
	}
	return fmt.Sprintf("%s %q is %q, not %q", what, m.name, value, m.value)
}
