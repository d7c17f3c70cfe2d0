"""What tests are made of: values, ledgers, manifests, tiny models and pages, and servers that answer as real ones do.

some_studies, some_manifests, ledgers     studies, trials and their ledgers, as values and as manifests
noisy_studies, simulated_cluster          whole studies in milliseconds, in calm weather and in storms
kube_of_dicts, studies_on_a_server        an API server of dicts; the CRD and studies on a real one
odd_buckets, odd_api_server, odd_teacher  servers that differ in what they say, break off, or answer nonsense
tiny_models, tiny_tokenizer, tiny_study   random models, their tokenizer, pages and a trial of them
model_families                            one tiny model of each architecture
study_command, stand_in_trainer           programs: the command line, and a trainer that takes no time
"""
