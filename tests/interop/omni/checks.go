package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"github.com/siderolabs/omni/client/api/omni/management"
	"github.com/siderolabs/omni/client/pkg/omni/resources/omni"
	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Patches of machine configs, good and bad. What is wrong below the first level of keys is not among them: the double
// does not know Talos's whole schema.
var patches = []string{
	"machine:\n  network:\n    hostname: a\n",
	"machine: {}\n---\napiVersion: v1alpha1\nkind: HostnameConfig\nhostname: a\n",
	"cluster:\n  network:\n    dnsDomain: a.local\n",
	"version: v1alpha1\n",
	"version: v1alpha1\nmachine: {}\n",
	"debug: true\n",
	"machine:\n",
	"machine: {}\n---\nversion: v1alpha1\n",
	"machine: {}\n---\ncluster: {}\n",
	"apiVersion: v1alpha1\nmachine: {}\n",
	"",
	"---\n",
	"# a comment\n",
	"machine:\n  token: x\n",
	"machine:\n  type: worker\n",
	"machine:\n  install:\n    extensions: []\n",
	"cluster:\n  controlPlane:\n    endpoint: https://a:6443\n",
	"cluster:\n  clusterName: a\n",
	"cluster:\n  secret: a\n",
	"machine:\n  features:\n    kubernetesTalosAPIAccess:\n      allowedRoles: [os:admin]\n",
	"machine:\n  features:\n    kubernetesTalosAPIAccess:\n      allowedRoles: [os:reader]\n",
	"machines: {}\n",
	"- a\n",
	"machine: [\n",
	"kind: HostnameConfig\nhostname: a\n",
}

// A provider's schema, as one that makes virtual machines has it.
const machineSchema = `{
	"$schema": "https://json-schema.org/draft/2020-12/schema",
	"type": "object",
	"properties": {
		"cores": {"type": "integer", "minimum": 1, "maximum": 64},
		"pool": {"type": "string", "enum": ["fast", "slow"]},
		"name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
		"disk": {"$ref": "#/$defs/disk"},
		"network": {"oneOf": [{"required": ["bridge"]}, {"required": ["vlan"]}]},
		"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": true}
	},
	"required": ["cores", "pool"],
	"additionalProperties": false,
	"$defs": {"disk": {"type": "object", "required": ["size"], "properties": {"size": {"type": "number"}}}}
}`

var comparisons = []struct{ schema, data string }{
	{machineSchema, "cores: 4\npool: fast\n"},
	{machineSchema, ""},
	{machineSchema, "cores: 0\npool: other\n"},
	{machineSchema, "cores: many\npool: 7\n"},
	{machineSchema, "cores: 4.5\npool: fast\nname: UPPER\n"},
	{machineSchema, "cores: 4\npool: fast\nname: toolong\nram: 8\n"},
	{machineSchema, "cores: 4\npool: fast\ndisk: {}\n"},
	{machineSchema, "cores: 4\npool: fast\ndisk: {size: 10}\ntags: [a, b]\n"},
	{machineSchema, "cores: 4\npool: fast\ntags: [a, a, 1]\n"},
	{machineSchema, "cores: 4\npool: fast\nnetwork: {}\n"},
	{machineSchema, "cores: 4\npool: fast\nnetwork: {bridge: a, vlan: 1}\n"},
	{machineSchema, "cores: 4\npool: fast\nnetwork: {vlan: 1}\n"},
	{machineSchema, "cores: 0x10\npool: 'fast'\n"},
	{machineSchema, "- cores\n"},
	{machineSchema, "cores: [\n"},
	{`{}`, "anything: [1, 2]\n"},
	{`true`, "a: 1\n"},
	{`false`, "a: 1\n"},
	{`{`, ""},
	{`{"type": 7}`, ""},
	{`{"$ref": "#/nowhere"}`, ""},
	{`{"pattern": "("}`, ""},
}

// unfit is what nobody compares with.
var unfit = []string{"unfit"}

// faults is where data and schema do not agree by the library that Omni uses, sorted.
func faults(schema, data string) []string {
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		return unfit
	}

	compiler := jsonschema.NewCompiler()
	if err = compiler.AddResource("schema.json", document); err != nil {
		return unfit
	}

	compiled, err := compiler.Compile("schema.json")
	if err != nil {
		return unfit
	}

	var value any
	if err = yaml.Unmarshal([]byte(data), &value); err != nil {
		return unfit
	}

	if value == nil {
		value = map[string]any{}
	}

	var disagreement *jsonschema.ValidationError
	if errors.As(compiled.Validate(value), &disagreement) {
		return slices.Sorted(slices.Values(places(disagreement)))
	}

	return nil
}

func places(disagreement *jsonschema.ValidationError) []string {
	var found []string

	for _, cause := range disagreement.Causes {
		place := "/" + strings.Join(cause.InstanceLocation, "/")

		if required, ok := cause.ErrorKind.(*kind.Required); ok {
			for _, property := range required.Missing {
				found = append(found, path.Join(place, property))
			}
		} else {
			found = append(found, place)
		}

		found = append(found, places(cause)...)
	}

	return found
}

// checks has the double check what the libraries check, too, and compares.
func checks(ctx context.Context, conn *grpc.ClientConn, ledger *ledger) error {
	server := management.NewManagementServiceClient(conn)

	for _, patch := range patches {
		_, err := server.ValidateConfig(ctx, &management.ValidateConfigRequest{Config: patch})
		if err != nil && status.Code(err) != codes.InvalidArgument {
			return err
		}

		own := omni.ValidateConfigPatch([]byte(patch))
		ledger.check(fmt.Sprintf("patch %q, %v and %v,", patch, err, own), (err == nil) == (own == nil))
	}

	for _, pair := range comparisons {
		var told []string

		answer, err := server.ValidateJSONSchema(ctx, &management.ValidateJsonSchemaRequest{Schema: pair.schema, Data: pair.data})
		if err != nil {
			told = unfit
		}

		for _, fault := range answer.GetErrors() {
			told = append(told, fault.GetDataPath())
		}

		slices.Sort(told)

		own := faults(pair.schema, pair.data)
		ledger.check(fmt.Sprintf("schema %q with %q, %v and %v,", pair.schema, pair.data, told, own), slices.Equal(told, own))
	}

	return nil
}
