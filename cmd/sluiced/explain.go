package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/l7proxy/explain"
	"github.com/sluice-mesh/sluice/mesh"
)

// Explain says which rule a request would meet.
func (w *worker) Explain(ctx context.Context, r admin.ExplainRequest) (*admin.Explanation, error) {
	e := explain.Explainer{
		Store: w.store, Routes: w.routes, ClusterDomain: w.s.ClusterDomain,
		Fetch: func(ctx context.Context, kind mesh.Kind, key string) error {
			w.xds.Want(kind, key)
			return w.xds.Wait(ctx, kind, key)
		},
	}
	request := explain.Request{Method: r.Method, URL: r.URL, From: r.From}
	for _, h := range r.Headers {
		request.Headers = append(request.Headers, mesh.HeaderValue(h))
	}
	found, err := e.Explain(ctx, request)
	switch {
	case errors.Is(err, explain.ErrRequest):
		return nil, fmt.Errorf("%w: %w", admin.ErrBadRequest, err)
	case errors.Is(err, explain.ErrNoWorkload):
		return nil, fmt.Errorf("%w: %w", admin.ErrNotFound, err)
	case err != nil:
		return nil, err
	}
	out := &admin.Explanation{
		Request: r, Table: found.Routing.Table, Host: found.Routing.Hostname, Winner: found.Routing.Winner,
		Status: found.Status, Reason: found.Reason.String(), Detail: found.Detail,
		Location: found.Location, Authority: found.Authority, Path: found.Path,
	}
	if found.Listener != nil {
		out.Listener = found.Listener.Name
	}
	for i, c := range found.Routing.Rules {
		rule := admin.ConsideredRule{Route: c.Route, Rule: c.RuleIndex, Match: c.MatchIndex, Name: c.RuleName, Matched: c.Matched, Why: c.Why}
		if i < len(found.Rules) {
			rule.Conditions = explain.Conditions(&found.Rules[i].Match)
		}
		out.Considered = append(out.Considered, rule)
	}
	if winner := found.Winner(); winner != nil {
		out.Filters, out.Limits = explain.Filters(winner.Filters), explain.Limits(winner)
		out.Clusters = w.explainClusters(winner)
	}
	return out, nil
}

func (w *worker) explainClusters(rule *mesh.Rule) []admin.ExplainedCluster {
	sum := 0.0
	for _, c := range rule.Clusters {
		sum += float64(c.Weight)
	}
	var out []admin.ExplainedCluster
	for _, c := range rule.Clusters {
		ec := admin.ExplainedCluster{Name: c.Cluster, Weight: c.Weight, Filters: explain.Filters(c.Filters)}
		if sum > 0 {
			ec.Share = float64(c.Weight) / sum
		}
		if eps, ok := w.store.Get(mesh.KindClusterEndpoints, c.Cluster).(*mesh.ClusterEndpoints); ok {
			for _, e := range eps.Endpoints {
				ec.Endpoints = append(ec.Endpoints, admin.Endpoint{Address: e.AddrPort, Workload: e.Workload, Node: e.Node, Ready: true})
			}
		}
		out = append(out, ec)
	}
	return out
}
