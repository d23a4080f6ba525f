"""Several tuned models as one: adapters merged, requests routed to experts, a large model distilled to a small one."""
