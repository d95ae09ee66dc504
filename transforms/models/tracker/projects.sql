{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}

select
    tenant_id,
    entity_id,
    payload.key as key,
    payload.name as name,
    payload.description as description,
    payload.lead as lead,
    nullif(payload.category, '') as category,
    payload.archived as archived,
    payload.created_at as created_at,
    payload.updated_at as updated_at,
    payload.archived_at as archived_at
from {{ source('raw', 'tracker.v1.Project') }}
