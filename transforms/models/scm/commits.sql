{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}

select
    tenant_id,
    entity_id,
    payload.sha as sha,
    payload.author as author,
    payload.authored_at as authored_at,
    payload.subject as subject,
    payload.parents as parents,
    payload.files_changed as files_changed,
    payload.insertions as insertions,
    payload.deletions as deletions
from {{ source('raw', 'scm.v1.Commit') }}
