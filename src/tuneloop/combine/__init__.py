"""Several tuned models as one: adapters merged, requests routed to experts, a large model distilled into a small one."""
