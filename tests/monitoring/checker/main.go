// Reads a file of alert rules and, on stdin, a JSON list of further expressions, with Prometheus' own parsers.
// Prints what is wrong and which series are selected, as JSON.
package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

type result struct {
	Errors    []string              `json:"errors"`
	Selectors [][]map[string]string `json:"selectors"`
}

func main() {
	found := result{Errors: []string{}, Selectors: [][]map[string]string{}}
	language := parser.NewParser(parser.Options{})
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	groups, problems := rulefmt.ParseFile(os.Args[1], false, model.UTF8Validation, language, quiet)
	for _, problem := range problems {
		found.Errors = append(found.Errors, problem.Error())
	}
	var expressions []string
	if problem := json.NewDecoder(os.Stdin).Decode(&expressions); problem != nil {
		found.Errors = append(found.Errors, problem.Error())
	}
	if groups != nil {
		for _, group := range groups.Groups {
			for _, rule := range group.Rules {
				expressions = append(expressions, rule.Expr)
			}
		}
	}
	for _, text := range expressions {
		expression, problem := language.ParseExpr(text)
		if problem != nil {
			found.Errors = append(found.Errors, text+": "+problem.Error())
			continue
		}
		for _, matchers := range parser.ExtractSelectors(expression) {
			selector := []map[string]string{}
			for _, matcher := range matchers {
				one := map[string]string{"label": matcher.Name, "type": matcher.Type.String(), "value": matcher.Value}
				selector = append(selector, one)
			}
			found.Selectors = append(found.Selectors, selector)
		}
	}
	json.NewEncoder(os.Stdout).Encode(found)
}
